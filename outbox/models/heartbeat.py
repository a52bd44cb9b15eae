"""The table in which relays say that they live."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

# A relay beats every few seconds; one that has been silent this long is dead or cut off.
ALIVE_FOR = timedelta(seconds=30)


class RelayHeartbeatQuerySet(models.QuerySet["RelayHeartbeat"]):
    """Verbs on heartbeats."""

    def alive(self) -> RelayHeartbeatQuerySet:
        """Keep the relays heard of within the last 30 seconds of the database clock."""
        return self.filter(seen_at__gte=Now() - ALIVE_FOR)

    def beat(self, relay_id: UUID, **fields: Any) -> None:
        """Record that a relay lives, and what it last did."""
        if not self.filter(pk=relay_id).update(seen_at=Now(), **fields):
            self.create(pk=relay_id, seen_at=Now(), **fields)

    def forget(self, older_than: timedelta) -> int:
        """Delete the rows of relays long gone."""
        return self.filter(seen_at__lt=Now() - older_than).delete()[0]


class RelayHeartbeat(models.Model):
    """One relay process: where it runs and what it last did."""

    id = models.UUIDField(_("id"), primary_key=True, editable=False)
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    queues = models.CharField(_("queues"), max_length=1000, blank=True, db_default="")
    state = models.CharField(_("state"), max_length=20, db_default="running")
    detail = models.TextField(_("detail"), blank=True, db_default="")
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    seen_at = models.DateTimeField(_("seen at"), db_default=Now())
    last_dispatch_at = models.DateTimeField(_("last dispatch at"), null=True, blank=True)
    dispatched = models.PositiveBigIntegerField(_("dispatched"), db_default=0)

    objects: ClassVar[Any] = RelayHeartbeatQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("relay")
        verbose_name_plural = _("relays")

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

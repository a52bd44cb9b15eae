"""The table of processes: relays and workers, with their heartbeats."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.db import models
from django.db.models import Case, F, When
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from .row_locks import brief_transaction, unlocked

# A process writes a heartbeat every few seconds; after this time without one it is dead or cut off.
ALIVE_FOR = timedelta(seconds=30)


class ProcessKind(models.TextChoices):
    """The kinds of processes that write heartbeats."""

    RELAY = "relay", _("relay")
    WORKER = "worker", _("worker")


class ProcessHeartbeatQuerySet(models.QuerySet["ProcessHeartbeat"]):
    """Verbs on heartbeats."""

    def relays(self) -> ProcessHeartbeatQuerySet:
        """Keep the relays."""
        return self.filter(kind=ProcessKind.RELAY)

    def workers(self) -> ProcessHeartbeatQuerySet:
        """Keep the workers."""
        return self.filter(kind=ProcessKind.WORKER)

    def alive(self) -> ProcessHeartbeatQuerySet:
        """Keep the processes with a heartbeat within the last 30 seconds of the database clock."""
        return self.filter(seen_at__gte=Now() - ALIVE_FOR)

    def beat(self, process_id: UUID, *, state: str, **fields: Any) -> None:
        """Record a heartbeat, the state, and other fields of a process."""
        same = When(state=state, then=F("state_since"))
        state_since = Case(same, default=Now(), output_field=models.DateTimeField())
        row = self.filter(pk=process_id)
        if not row.update(seen_at=Now(), state_since=state_since, state=state, **fields):
            self.create(pk=process_id, seen_at=Now(), state=state, **fields)

    def forget(self, older_than: timedelta) -> int:
        """Delete the processes whose last heartbeat is older than this."""
        old = self.filter(seen_at__lt=Now() - older_than)
        if not old.exists():
            return 0
        with brief_transaction(self.db):
            return self.filter(pk__in=list(unlocked(old).values_list("pk", flat=True))).delete()[0]


class ProcessHeartbeat(models.Model):
    """One process that serves one database: a relay or a worker, with its host, state and problems."""

    Kind = ProcessKind

    id = models.UUIDField(_("id"), primary_key=True, editable=False)
    kind = models.CharField(_("kind"), max_length=6, choices=Kind.choices, db_default=Kind.RELAY.value)
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    version = models.CharField(_("version"), max_length=40, blank=True, db_default="")
    queues = models.TextField(_("queues"), blank=True, db_default="")
    threads = models.PositiveSmallIntegerField(_("threads"), db_default=1)
    state = models.CharField(_("state"), max_length=20, db_default="running")
    state_since = models.DateTimeField(_("state since"), db_default=Now())
    detail = models.TextField(_("detail"), blank=True, db_default="")
    # A list of objects, each with the `kind` and the `cause` of a problem.
    problems = models.JSONField(_("problems"), default=list, blank=True)
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    seen_at = models.DateTimeField(_("seen at"), db_default=Now())
    last_dispatch_at = models.DateTimeField(_("last dispatch at"), null=True, blank=True)
    dispatched = models.PositiveBigIntegerField(_("dispatched"), db_default=0)

    objects: ClassVar[Any] = ProcessHeartbeatQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("process")
        verbose_name_plural = _("processes")

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def queue_names(self) -> list[str]:
        """The queues that the process serves; empty for a relay of all queues."""
        return self.queues.split(",") if self.queues else []

"""The table of paused handlers."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from .delivery import Delivery

# Rows that one statement lets go, so that resuming a long backlog never holds many locks.
RESUME_CHUNK = 5000


class PausedHandlerQuerySet(models.QuerySet["PausedHandler"]):
    """Verbs on paused handlers."""

    def names(self) -> frozenset[str]:
        """Return the names of the paused handlers."""
        return frozenset(self.values_list("handler", flat=True))

    def pause(self, handler: str, reason: str = "") -> bool:
        """Keep a handler's deliveries from being dispatched; return whether it was not paused yet."""
        _row, created = self.get_or_create(handler=handler, defaults={"reason": reason})
        return created

    def resume(self, handler: str) -> bool:
        """Let a handler's deliveries go again; return whether it was paused."""
        deleted, _by_model = self.filter(handler=handler).delete()
        deliveries = Delivery.objects.using(self.db)
        while deliveries.let_go(handler, limit=RESUME_CHUNK) == RESUME_CHUNK:
            continue
        return bool(deleted)


class PausedHandler(models.Model):
    """A handler whose deliveries wait until an operator resumes it."""

    handler = models.CharField(_("handler"), max_length=255, primary_key=True)
    reason = models.TextField(_("reason"), blank=True, db_default="")
    paused_at = models.DateTimeField(_("paused at"), db_default=Now())

    objects: ClassVar[Any] = PausedHandlerQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("paused handler")
        verbose_name_plural = _("paused handlers")

    def __str__(self) -> str:
        return self.handler

    def waiting(self, limit: int) -> int:
        """Return how many of its deliveries relays have left aside, counting no further than `limit`."""
        held = Delivery.objects.using(self._state.db).pending().exclude(held="")
        return int(held.filter(handler=self.handler).order_by().values("pk")[:limit].count())

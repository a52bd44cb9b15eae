"""The table of paused handlers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from .delivery import Delivery

# Rows that one call resumes, so that a long backlog costs a request neither much time nor many locks.
RESUME_CHUNK = 5000


class PausedHandlerQuerySet(models.QuerySet["PausedHandler"]):
    """Verbs on paused handlers."""

    def names(self) -> frozenset[str]:
        """Return the names of the paused handlers."""
        return frozenset(self.values_list("handler", flat=True))

    def pause(self, handler: str, reason: str = "") -> bool:
        """Pause a handler; return whether it was not paused before."""
        _row, created = self.get_or_create(handler=handler, defaults={"reason": reason})
        return created

    def resume(self, handler: str) -> bool:
        """Resume a handler; return whether it was paused.

        The first `RESUME_CHUNK` of its waiting deliveries become due. Relays make the others due.
        """
        return self.resume_all([handler]) == [handler]

    def resume_all(self, handlers: Iterable[str]) -> list[str]:
        """Resume handlers as `resume` does, with one limit for all of them; return those that were paused."""
        names = list(handlers)
        resumed = [name for name in names if self.filter(handler=name).delete()[0]]
        left = RESUME_CHUNK
        for name in names:
            if left > 0:
                left -= Delivery.objects.using(self.db).resume(name, limit=left)
        return resumed

    def rename(self, former: Mapping[str, str]) -> None:
        """Let the pauses of handlers' former names hold for the present names.

        Args:
            former: the present names, by former name.
        """
        for row in self.filter(handler__in=list(former)):
            with transaction.atomic(using=self.db):
                # An operator may resume the handler in this moment.
                if self.filter(pk=row.pk).delete()[0]:
                    self.pause(former[row.handler], row.reason)

    def finish_resuming(self, handler: str) -> None:
        """Make all waiting deliveries of a resumed handler due, in chunks of one statement each."""
        deliveries = Delivery.objects.using(self.db)
        while deliveries.resume(handler, limit=RESUME_CHUNK) == RESUME_CHUNK:
            continue


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
        """Return how many of its deliveries wait, counted up to `limit`."""
        waiting = Delivery.objects.using(self._state.db).pending().exclude(waits_for="")
        return int(waiting.filter(handler=self.handler).order_by().values("pk")[:limit].count())

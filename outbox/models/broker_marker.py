"""The table of the brokers' markers: a broker without its marker has lost its messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, Self

from django.db import connections, models
from django.db.models import BooleanField, ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class BrokerMarkerQuerySet(models.QuerySet["BrokerMarker"]):
    """Verbs on markers."""

    def lock(self) -> Self:
        """Lock rows for this transaction; skip rows that another relay has locked."""
        if connections[self.db].features.has_select_for_update_skip_locked:
            return self.select_for_update(skip_locked=True)
        return self

    def with_age_of_loss(self, **times: timedelta) -> Self:
        """Annotate `<name>_is_over` for each time: whether it has passed since the loss."""
        return self.annotate(**{f"{name}_is_over": _is_before(Now() - time) for name, time in times.items()})

    def start(self) -> int:
        """Record that the first marker exists."""
        return self.filter(generation=0).update(generation=1)

    def record_loss(self) -> int:
        """Record that the messages dispatched before now may be lost, and begin the next generation."""
        return self.update(generation=F("generation") + 1, lost_at=Now(), repaired=False)

    def check_again(self) -> int:
        """Record that messages dispatched since the last loss may be lost as well."""
        return self.update(lost_at=Now(), repaired=False)

    def record_repair(self, marker: BrokerMarker) -> int:
        """Record that the lost messages of a loss were sent again, unless there is a later loss."""
        # Not by equality: SQLite stores its own times with fewer digits than those of parameters.
        no_later = self.filter(pk=marker.pk, generation=marker.generation, lost_at__lte=marker.lost_at)
        return no_later.update(repaired=True)


class BrokerMarker(models.Model):
    """The marker that a broker should have.

    The name of the broker's marker consists of `marker` and `generation`. Each loss begins a new generation,
    whose marker is made in the transaction that records the loss. No marker was made yet in generation 0.
    """

    broker = models.CharField(_("broker"), max_length=255, primary_key=True)
    marker = models.CharField(_("marker"), max_length=64)
    generation = models.PositiveIntegerField(_("generation"), db_default=0)
    lost_at = models.DateTimeField(_("lost at"), null=True, blank=True)
    repaired = models.BooleanField(_("repaired"), db_default=True)

    objects: ClassVar[Any] = BrokerMarkerQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("broker marker")
        verbose_name_plural = _("broker markers")

    def __str__(self) -> str:
        return f"{self.broker} {self.generation}"


def _is_before(moment: Any) -> Any:
    return ExpressionWrapper(Q(lost_at__lt=moment), output_field=BooleanField())

"""The delivery table."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from .event import MAX_KEY_LENGTH, Event
from .states import UNSETTLED, DeliveryStatus, Held
from .verbs import DeliveryQuerySet


class Delivery(models.Model):
    """One event on its way to one handler."""

    Status = DeliveryStatus
    Held = Held
    UNSETTLED: ClassVar = UNSETTLED

    id = models.BigAutoField(_("id"), primary_key=True)
    # One statement writes both rows and pruning removes both, so a constraint in the database would only
    # repeat what holds already; measured, it costs each publish about 15 µs of server time.
    event = models.ForeignKey(
        Event, models.CASCADE, verbose_name=_("event"), related_name="deliveries", db_constraint=False
    )
    handler = models.CharField(_("handler"), max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    key = models.CharField(_("lane key"), max_length=MAX_KEY_LENGTH, blank=True, db_default="")
    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, db_default=Status.PENDING.value
    )
    attempts = models.PositiveSmallIntegerField(_("attempts"), db_default=0)
    redeliveries = models.PositiveSmallIntegerField(_("redeliveries"), db_default=0)
    refusals = models.PositiveSmallIntegerField(_("refusals"), db_default=0)
    crashes = models.PositiveSmallIntegerField(_("crashes"), db_default=0)
    # Held rows are in no index that the claim walks.
    held = models.CharField(_("held"), max_length=5, blank=True, choices=Held.choices, db_default="")
    available_at = models.DateTimeField(_("available at"), db_default=Now())
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    dispatched_at = models.DateTimeField(_("dispatched at"), null=True, blank=True)
    confirm_by = models.DateTimeField(_("confirm by"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    error = models.TextField(_("error"), blank=True, db_default="")

    objects: ClassVar[Any] = DeliveryQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        # Partial, so that their cost follows the backlog and not the history.
        indexes: ClassVar = [
            models.Index(
                fields=["available_at", "id"],
                name="outbox_delivery_due",
                condition=Q(status="pending", held=""),
            ),
            # Few of what is due are lanes' first ones: they are found without a walk past the others.
            models.Index(
                fields=["available_at", "id"],
                name="outbox_delivery_due_lanes",
                condition=Q(status="pending", held="") & ~Q(key=""),
            ),
            models.Index(
                fields=["handler", "available_at", "id"],
                name="outbox_delivery_batch",
                condition=Q(status="pending", held="batch"),
            ),
            models.Index(
                fields=["handler", "id"],
                name="outbox_delivery_held",
                condition=Q(status="pending") & ~Q(held=""),
            ),
            models.Index(
                fields=["confirm_by"], name="outbox_delivery_unconfirmed", condition=Q(status="dispatched")
            ),
            models.Index(
                fields=["handler", "key", "id"],
                name="outbox_delivery_lane",
                condition=Q(status__in=["pending", "dispatched", "failed"]) & ~Q(key=""),
            ),
            # A lane is released once none of it is dispatched; it may be too long to be read for that.
            models.Index(
                fields=["handler", "key"],
                name="outbox_delivery_lane_sent",
                condition=Q(status="dispatched") & ~Q(key=""),
            ),
            models.Index(
                fields=["handler", "id"], name="outbox_delivery_failed", condition=Q(status="failed")
            ),
            models.Index(
                fields=["id"],
                name="outbox_delivery_crashed",
                condition=Q(status__in=["pending", "dispatched", "failed"], crashes__gt=0),
            ),
        ]
        # A state that is mistyped by hand would be in none of these indexes: a row that nobody ever finds.
        constraints: ClassVar = [
            models.CheckConstraint(
                name="outbox_delivery_status",
                condition=Q(status__in=["pending", "dispatched", "succeeded", "failed", "discarded"]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.handler} #{self.pk}"

    def may_run(self, *, max_crashes: int) -> bool:
        """Return whether a copy of its message that comes late should run."""
        if self.status == Delivery.Status.FAILED:
            return not 0 < max_crashes <= self.crashes
        return self.status not in (Delivery.Status.SUCCEEDED, Delivery.Status.DISCARDED)

"""The delivery table."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from outbox.events import MAX_KEY_LENGTH, DeliveryRef

from .delivery_verbs import DeliveryQuerySet
from .event import Event
from .states import UNSETTLED, DeliveryState, WaitsFor


class Delivery(models.Model):
    """One event addressed to one handler."""

    State = DeliveryState
    WaitsFor = WaitsFor
    UNSETTLED: ClassVar = UNSETTLED

    id = models.BigAutoField(_("id"), primary_key=True)
    # One statement writes both rows and pruning deletes both, so they are consistent without a constraint
    # in the database. A constraint would cost each publish about 15 µs of server time (measured).
    event = models.ForeignKey(
        Event, models.CASCADE, verbose_name=_("event"), related_name="deliveries", db_constraint=False
    )
    # An update that stays on its page logs only the bytes between its first and its last changed column. So
    # columns that a dispatch and an outcome leave alone come first, and those that both change come last.
    available_at = models.DateTimeField(_("available at"), db_default=Now())
    handler = models.CharField(_("handler"), max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    key = models.CharField(_("ordering key"), max_length=MAX_KEY_LENGTH, blank=True, db_default="")
    # A waiting delivery is in no index that the claim scans.
    waits_for = models.CharField(
        _("waits for"), max_length=6, blank=True, choices=WaitsFor.choices, db_default=""
    )
    error = models.TextField(_("error"), blank=True, db_default="")
    # Dramatiq's `Retries` leaves its state in the options of a message, which the next message carries.
    message_options = models.JSONField(_("message options"), null=True, blank=True)
    # The due time before the relay put the delivery off; null if `available_at` is the due time.
    due_since = models.DateTimeField(_("due since"), null=True, blank=True)
    redeliveries = models.PositiveSmallIntegerField(_("redeliveries"), db_default=0)
    resends = models.PositiveSmallIntegerField(_("resends"), db_default=0)
    refusals = models.PositiveSmallIntegerField(_("refusals"), db_default=0)
    crashes = models.PositiveSmallIntegerField(_("crashes"), db_default=0)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    replayed = models.BooleanField(_("replayed"), db_default=False)
    # The process that has the message in its memory; null if a broker has it.
    owner = models.BigIntegerField(_("owner"), null=True, blank=True, editable=False)
    attempts = models.PositiveSmallIntegerField(_("attempts"), db_default=0)
    dispatched_at = models.DateTimeField(_("dispatched at"), null=True, blank=True)
    state = models.CharField(_("state"), max_length=10, choices=State.choices, db_default=State.PENDING.value)
    confirm_by = models.DateTimeField(_("confirm by"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    objects: ClassVar[Any] = DeliveryQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        # Partial indexes, so that their cost follows the backlog and not the history.
        indexes: ClassVar = [
            models.Index(
                fields=["available_at", "id"],
                name="outbox_delivery_due",
                condition=Q(state="pending", waits_for=""),
            ),
            # Finds ordered deliveries without a scan of the due deliveries that have no ordering key.
            models.Index(
                fields=["available_at", "id"],
                name="outbox_delivery_due_ordered",
                condition=Q(state="pending", waits_for="") & ~Q(key=""),
            ),
            models.Index(
                fields=["handler", "available_at", "id"],
                name="outbox_delivery_batch",
                condition=Q(state="pending", waits_for="batch"),
            ),
            models.Index(
                fields=["handler", "id"],
                name="outbox_delivery_waiting",
                condition=Q(state="pending") & ~Q(waits_for=""),
            ),
            models.Index(
                fields=["handler", "due_since"],
                name="outbox_delivery_put_off",
                condition=Q(state="pending", waits_for="", due_since__isnull=False),
            ),
            models.Index(
                fields=["confirm_by"], name="outbox_delivery_unconfirmed", condition=Q(state="dispatched")
            ),
            # Empty unless handlers run in the relay's process.
            models.Index(
                fields=["owner"],
                name="outbox_delivery_owner",
                condition=Q(state="dispatched", owner__isnull=False),
            ),
            models.Index(
                fields=["handler", "key", "id"],
                name="outbox_delivery_key",
                condition=Q(state__in=["pending", "dispatched", "failed"]) & ~Q(key=""),
            ),
            # Shows whether a delivery of a key is dispatched, without a scan of all deliveries of the key.
            models.Index(
                fields=["handler", "key"],
                name="outbox_delivery_key_sent",
                condition=Q(state="dispatched") & ~Q(key=""),
            ),
            models.Index(
                fields=["handler", "id"], name="outbox_delivery_failed", condition=Q(state="failed")
            ),
            # Finds failed deliveries that may block a key without a scan of those that have no key.
            models.Index(
                fields=["handler", "id"],
                name="outbox_delivery_failed_keys",
                condition=Q(state="failed") & ~Q(key=""),
            ),
            models.Index(
                fields=["id"],
                name="outbox_delivery_crashed",
                condition=Q(state__in=["pending", "dispatched", "failed"], crashes__gt=0),
            ),
        ]
        # No relay would ever find a row whose state was mistyped by hand: it would be in none of the indexes.
        constraints: ClassVar = [
            models.CheckConstraint(
                name="outbox_delivery_state",
                condition=Q(state__in=["pending", "dispatched", "succeeded", "failed", "discarded"]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.handler} #{self.pk}"

    @property
    def ref(self) -> DeliveryRef:
        """The identity of the delivery."""
        return DeliveryRef(self.pk, str(self.event_id))

    def may_run(self, *, max_crashes: int) -> bool:
        """Return whether a late or duplicate message of the delivery should run."""
        if self.state == Delivery.State.FAILED:
            return not 0 < max_crashes <= self.crashes
        return self.state not in (Delivery.State.SUCCEEDED, Delivery.State.DISCARDED)

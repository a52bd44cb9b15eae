"""The delivery table and the verbs that change a delivery's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar
from uuid import UUID

from django.db import connections, models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Concat, Least, Now
from django.utils.translation import gettext_lazy as _

from .event import MAX_KEY_LENGTH, Event
from .recording import NewDelivery

CRASHED = (
    "crashed: {} workers died while they ran it, out of memory, of a segmentation fault or killed; "
    "what their processes logged last says more"
)
# Enough for a traceback of any sane depth; the end of it says what went wrong.
MAX_ERROR_CHARS = 20_000

EXPIRED = "expired before it was dispatched"
NEVER_CONFIRMED = "never confirmed: {} dispatches, and no worker reported an outcome"


_SETTLE = """
WITH mine AS MATERIALIZED (
    SELECT id FROM unnest(%s::bigint[]) AS asked(id)
    WHERE pg_try_advisory_xact_lock(hashtextextended('outbox_delivery', id))
)
UPDATE outbox_delivery d SET status = 'succeeded', finished_at = statement_timestamp(), confirm_by = NULL
FROM mine WHERE d.id = mine.id AND d.status IN ('pending', 'dispatched')
RETURNING d.id
"""


_RELEASE_LANES = """
UPDATE outbox_delivery d SET held = ''
FROM unnest(%s::text[], %s::text[]) AS lane(handler, key)
CROSS JOIN LATERAL (
    SELECT p.id, p.status, p.held FROM outbox_delivery p
    WHERE p.handler = lane.handler AND p.key = lane.key AND p.key <> ''
      AND p.status IN ('pending', 'dispatched', 'failed')
      AND (p.status <> 'failed' OR p.handler <> ALL(%s::text[]))
    ORDER BY p.status <> 'dispatched', p.id LIMIT 1
) AS head
WHERE d.id = head.id AND head.held = 'lane' AND head.status = 'pending' AND d.status = 'pending'
"""


def storable(text: str) -> str:
    """Return an error as the database takes it: without NUL and lone surrogates, and not too long."""
    return text[-MAX_ERROR_CHARS:].replace("\0", "\\0").encode("utf-8", "replace").decode()


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """Verbs on deliveries: each is one statement, and each says which states it starts from."""

    def pending(self) -> DeliveryQuerySet:
        """Keep those that wait to be dispatched, due or not."""
        return self.filter(status=Delivery.Status.PENDING)

    def due(self, queues: Iterable[str] = ()) -> DeliveryQuerySet:
        """Keep those that a relay may claim now, in the order in which it does."""
        due = self.pending().filter(held="", available_at__lte=Now()).order_by("available_at", "id")
        return due.filter(queue__in=list(queues)) if queues else due

    def held_for(self, handler: str, wait: timedelta) -> DeliveryQuerySet:
        """Keep those of a batched handler whose events are due, in the order of their publication."""
        held = self.pending().filter(held=Delivery.Held.BATCH, handler=handler)
        return held.filter(available_at__lte=Now() + wait).order_by("id")

    def unconfirmed(self) -> DeliveryQuerySet:
        """Keep those handed to the broker whose outcome is not known yet."""
        return self.filter(status=Delivery.Status.DISPATCHED)

    def overdue(self) -> DeliveryQuerySet:
        """Keep those whose confirmation should have come by now."""
        return self.unconfirmed().filter(confirm_by__lt=Now())

    def crashed(self) -> DeliveryQuerySet:
        """Keep those that a worker died of, unless they are settled."""
        return self.filter(crashes__gt=0, status__in=Delivery.UNSETTLED)

    def failed(self) -> DeliveryQuerySet:
        """Keep those that wait for an operator."""
        return self.filter(status=Delivery.Status.FAILED)

    def still_needed(self, failed_retention: timedelta) -> DeliveryQuerySet:
        """Keep those whose event must not be pruned: unfinished, or failed not long ago."""
        unfinished = Q(status__in=(Delivery.Status.PENDING, Delivery.Status.DISPATCHED))
        return self.filter(
            unfinished | Q(status=Delivery.Status.FAILED, finished_at__gt=Now() - failed_retention)
        )

    def prunable(self, failed_retention: timedelta) -> DeliveryQuerySet:
        """Keep those that are done with."""
        done = Q(status__in=(Delivery.Status.SUCCEEDED, Delivery.Status.DISCARDED))
        return self.filter(done | Q(status=Delivery.Status.FAILED, finished_at__lte=Now() - failed_retention))

    def mark_dispatched(self, confirm_timeout: timedelta | None) -> int:
        """Record that pending deliveries go to the broker; without a timeout nobody will confirm them."""
        outcome: dict[str, Any] = {"status": Delivery.Status.SUCCEEDED, "finished_at": Now()}
        if confirm_timeout is not None:
            outcome = {"status": Delivery.Status.DISPATCHED, "confirm_by": Now() + confirm_timeout}
        attempts = Least(F("attempts") + 1, 32767)
        return self.pending().update(attempts=attempts, dispatched_at=Now(), **outcome)

    def settle(self, ids: Sequence[int]) -> set[int]:
        """Mark unfinished deliveries as succeeded ahead of their run, within the transaction of the run.

        The advisory lock tells copies of one message apart from the relay, whose row lock, held until its
        dispatch is committed, is worth waiting for.

        Returns:
            The ids of those that are this transaction's to run.
        """
        if connections[self.db].vendor == "postgresql":
            with connections[self.db].cursor() as cursor:
                cursor.execute(_SETTLE, [list(ids)])
                return {row[0] for row in cursor.fetchall()}
        open_ones = self.filter(pk__in=ids, status__in=(Delivery.Status.PENDING, Delivery.Status.DISPATCHED))
        mine = set(open_ones.values_list("pk", flat=True))
        open_ones.update(status=Delivery.Status.SUCCEEDED, finished_at=Now(), confirm_by=None)
        return mine

    def reopen(self) -> int:
        """Take back what `settle` did, within the same transaction."""
        return self.update(status=Delivery.Status.DISPATCHED, finished_at=None)

    def reschedule(self, delay: timedelta, error: str) -> int:
        """Send deliveries that were just claimed back to pending, due after `delay`, with the reason."""
        return self.update(
            status=Delivery.Status.PENDING,
            available_at=Now() + delay,
            held="",
            confirm_by=None,
            finished_at=None,
            error=storable(error),
        )

    def release(self, delay: timedelta, error: str) -> int:
        """Send deliveries that were claimed but never sent back to pending; it costs them no attempt."""
        self.update(attempts=F("attempts") - 1)
        return self.reschedule(delay, error)

    def hold(self, held: str) -> int:
        """Send deliveries that were just claimed back to pending, to wait for something other than time."""
        return self.update(
            status=Delivery.Status.PENDING,
            attempts=F("attempts") - 1,
            held=held,
            confirm_by=None,
            finished_at=None,
        )

    def let_go(self, handler: str, *, limit: int) -> int:
        """Stop holding deliveries of a handler that was paused; return how many."""
        held = self.pending().filter(held=Delivery.Held.PAUSE, handler=handler).order_by("id")[:limit]
        return self.filter(pk__in=list(held.values_list("pk", flat=True))).update(held="")

    def release_lanes(self, lanes: Iterable[tuple[str, str]], *, skipping: Sequence[str]) -> int:
        """Stop holding the first unfinished delivery of each lane; return how many were held.

        Call it in a transaction of its own, after the one that finished the delivery before, or that held
        this one, has committed: so that of two who do these at the same time the later one sees both.

        Args:
            lanes: pairs of handler and key.
            skipping: handlers whose lanes go on past a failed delivery.
        """
        pairs = sorted(set(lanes))
        if not pairs:
            return 0
        if connections[self.db].vendor != "postgresql":
            return sum(self._release_lane(*pair, skipping=skipping) for pair in pairs)
        handlers, keys = map(list, zip(*pairs, strict=True))
        with connections[self.db].cursor() as cursor:
            cursor.execute(_RELEASE_LANES, [handlers, keys, list(skipping)])
            return int(cursor.rowcount)

    def held_lanes(self, *, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
        """Return lanes in which deliveries are held, in their order, beginning after one of them."""
        handler, key = after
        later = Q(handler=handler, key__gt=key) | Q(handler__gt=handler)
        held = self.pending().filter(later, held=Delivery.Held.LANE).order_by("handler", "key")
        return list(held.values_list("handler", "key").distinct()[:limit])

    def let_go_stranded(self, *, paused: Iterable[str], batched: Iterable[str], limit: int) -> int:
        """Stop holding what nothing holds any more; return how many.

        A relay may have held deliveries of a handler at the very moment in which it was resumed, and one that
        was batched when they were published may be so no longer.

        Args:
            paused: the handlers that are paused.
            batched: the handlers that are batched, as far as this process knows.
        """
        pending = self.pending()
        stranded = pending.filter(held=Delivery.Held.PAUSE).exclude(handler__in=list(paused))
        stranded |= pending.filter(held=Delivery.Held.BATCH).exclude(handler__in=list(batched))
        ids = list(stranded.order_by().values_list("pk", flat=True)[:limit])
        return pending.filter(pk__in=ids).update(held="")

    def _release_lane(self, handler: str, key: str, *, skipping: Sequence[str]) -> int:
        lane = self.lane(handler, key, skipping=skipping)
        head = lane.first()
        if head is None or head.held != Delivery.Held.LANE or lane.unconfirmed().exists():
            return 0
        return self.pending().filter(pk=head.pk).update(held="")

    def lane(self, handler: str, key: str, *, skipping: Sequence[str]) -> DeliveryQuerySet:
        """Keep the unfinished deliveries of a lane, first in first; a failed one blocks unless skipped."""
        blocking = [Delivery.Status.PENDING, Delivery.Status.DISPATCHED]
        if handler not in skipping:
            blocking.append(Delivery.Status.FAILED)
        return self.filter(handler=handler, key=key, status__in=blocking).exclude(key="").order_by("id")

    def fail(self, error: str) -> int:
        """End deliveries as failed, with the reason."""
        return self.update(
            status=Delivery.Status.FAILED, finished_at=Now(), confirm_by=None, error=storable(error)
        )

    def crash(self, *, max_crashes: int) -> dict[int, str]:
        """Count that a worker died while it ran these, and fail those of which too many did.

        Returns:
            The handlers of those that failed, by their ids.

        Raises:
            OperationalError: if somebody has locked one of them, as another copy that runs may for long.
        """
        rows = self.filter(status__in=Delivery.UNSETTLED)
        if connections[self.db].features.has_select_for_update_nowait:
            rows = rows.select_for_update(nowait=True)
        with transaction.atomic(using=self.db):
            crashed = self.filter(pk__in=list(rows.values_list("pk", flat=True)))
            crashed.update(crashes=F("crashes") + 1)
            spent = crashed.filter(crashes__gte=max_crashes).exclude(status=Delivery.Status.FAILED)
            failing = dict(spent.values_list("pk", "handler"))
            spent.fail(CRASHED.format(max_crashes))
        return failing

    def extend(self, timeout: timedelta) -> int:
        """Wait longer for the confirmation of overdue deliveries."""
        with transaction.atomic(using=self.db):
            ids = list(self.overdue()._unlocked().values_list("pk", flat=True))
            return self.filter(pk__in=ids).update(confirm_by=Now() + timeout)

    def redeliver_overdue(self, *, limit: int, max_redeliveries: int) -> tuple[int, int]:
        """Send again what was never confirmed, or fail it once that has been tried often enough.

        Returns:
            How many went back to pending, and how many failed.
        """
        rows = self.overdue().order_by("confirm_by")._unlocked()
        with transaction.atomic(using=self.db):
            overdue = dict(rows.values_list("pk", "redeliveries")[:limit])
            spent = [pk for pk, redeliveries in overdue.items() if redeliveries >= max_redeliveries]
            failed = self.filter(pk__in=spent).fail(NEVER_CONFIRMED.format(max_redeliveries + 1))
            again = self.filter(pk__in=overdue.keys() - set(spent)).update(
                status=Delivery.Status.PENDING,
                available_at=Now(),
                held="",
                confirm_by=None,
                redeliveries=F("redeliveries") + 1,
            )
        return again, failed

    def _unlocked(self) -> DeliveryQuerySet:
        """Lock rows for this transaction, passing over those that a transactional handler has locked."""
        if connections[self.db].features.has_select_for_update_skip_locked:
            return self.select_for_update(skip_locked=True)
        return self

    def retry(self) -> int:
        """Give failed deliveries a fresh start, on an operator's word."""
        return self.failed().update(
            status=Delivery.Status.PENDING,
            available_at=Now(),
            held="",
            attempts=0,
            # Marks the message as a copy that is looked up, since the one before may run after all.
            redeliveries=1,
            crashes=0,
            finished_at=None,
            confirm_by=None,
        )

    def replay(self, deliveries: Iterable[tuple[UUID, NewDelivery]]) -> int:
        """Write new deliveries of old events, as if they were published now, on an operator's word."""
        new = [
            Delivery(
                event_id=event_id,
                handler=to.handler,
                queue=to.queue,
                key=to.key,
                held=to.held,
                available_at=Now() + to.wait,
            )
            for event_id, to in deliveries
        ]
        self.bulk_create(new, batch_size=1000)
        return len(new)

    def discard(self, reason: str, *, skipping: Sequence[str] = ()) -> int:
        """End failed or pending deliveries for good, on an operator's word; lanes behind them go on.

        Args:
            skipping: handlers whose lanes go on past a failed delivery, as for `release_lanes`.
        """
        rows = self.filter(status__in=(Delivery.Status.FAILED, Delivery.Status.PENDING))
        lanes = list(rows.exclude(key="").order_by().values_list("handler", "key").distinct())
        # The error that made an operator give up stays below the reason.
        error = Concat(Value(f"{reason}\n\n"), "error", output_field=models.TextField())
        count = rows.update(
            status=Delivery.Status.DISCARDED,
            finished_at=Now(),
            confirm_by=None,
            error=Case(When(error="", then=Value(reason)), default=error, output_field=models.TextField()),
        )
        if lanes:
            deliveries = Delivery.objects.using(self.db)
            transaction.on_commit(partial(deliveries.release_lanes, lanes, skipping=skipping), using=self.db)
        return count

    def expire(self) -> int:
        """End deliveries that were just claimed, since it is too late for them."""
        return self.update(
            status=Delivery.Status.DISCARDED, finished_at=Now(), confirm_by=None, error=EXPIRED
        )


class Delivery(models.Model):
    """One event on its way to one handler."""

    class Status(models.TextChoices):
        """The states of a delivery; the last three are final unless an operator retries a failed one."""

        PENDING = "pending", _("pending")
        DISPATCHED = "dispatched", _("dispatched")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        DISCARDED = "discarded", _("discarded")

    # What may still become of it something else than it is.
    UNSETTLED: ClassVar = (Status.PENDING, Status.DISPATCHED, Status.FAILED)

    class Held(models.TextChoices):
        """What a pending delivery waits for, other than time."""

        BATCH = "batch", _("for its batch")
        LANE = "lane", _("for the one before it in its lane")
        PAUSE = "pause", _("for its handler to be resumed")

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

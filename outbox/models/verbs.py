"""The verbs that change a delivery's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connections, models, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Concat, Greatest, Least, Now

from . import lanes, overdue
from .recording import NewDelivery
from .selections import Selections
from .states import UNSETTLED, DeliveryStatus, Held

CRASHED = (
    "crashed: {} workers died while they ran it, out of memory, of a segmentation fault or killed; "
    "what their processes logged last says more"
)
# Enough for a traceback of any sane depth; the end of it says what went wrong.
MAX_ERROR_CHARS = 20_000

EXPIRED = "expired before it was dispatched"


_SETTLE = """
WITH mine AS MATERIALIZED (
    SELECT id FROM unnest(%s::bigint[]) AS asked(id)
    WHERE pg_try_advisory_xact_lock(hashtextextended('outbox_delivery', id))
)
UPDATE outbox_delivery d SET status = 'succeeded', finished_at = statement_timestamp(), confirm_by = NULL
FROM mine WHERE d.id = mine.id AND d.status IN ('pending', 'dispatched')
RETURNING d.id
"""


def storable(text: str) -> str:
    """Return an error as the database takes it: without NUL and lone surrogates, and not too long."""
    return text[-MAX_ERROR_CHARS:].replace("\0", "\\0").encode("utf-8", "replace").decode()


class DeliveryQuerySet(Selections):
    """Verbs on deliveries: each is one statement, and each says which states it starts from."""

    release_lanes = lanes.release_lanes
    held_lanes = lanes.held_lanes
    extend = overdue.extend
    redeliver_overdue = overdue.redeliver_overdue

    def mark_dispatched(self, confirm_timeout: timedelta | None) -> int:
        """Record that pending deliveries go to the broker; without a timeout nobody will confirm them."""
        outcome: dict[str, Any] = {"status": DeliveryStatus.SUCCEEDED, "finished_at": Now()}
        if confirm_timeout is not None:
            outcome = {"status": DeliveryStatus.DISPATCHED, "confirm_by": Now() + confirm_timeout}
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
        open_ones = self.filter(pk__in=ids, status__in=(DeliveryStatus.PENDING, DeliveryStatus.DISPATCHED))
        mine = set(open_ones.values_list("pk", flat=True))
        open_ones.update(status=DeliveryStatus.SUCCEEDED, finished_at=Now(), confirm_by=None)
        return mine

    def unsettle(self, reasons: Mapping[int, str]) -> int:
        """End as discarded what `settle` marked and that needs no run after all, in the same transaction."""
        why = [When(pk=pk, then=Value(storable(reason))) for pk, reason in reasons.items()]
        return self.filter(pk__in=reasons, status=DeliveryStatus.SUCCEEDED).update(
            status=DeliveryStatus.DISCARDED,
            error=Case(*why, default=F("error"), output_field=models.TextField()),
        )

    def reschedule(self, delay: timedelta, error: str) -> int:
        """Send deliveries that were just claimed back to pending, due after `delay`, with the reason."""
        return self.update(
            status=DeliveryStatus.PENDING,
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

    def refuse(self) -> dict[int, int]:
        """Count that the broker refused deliveries that were just claimed; it costs them no attempt.

        Returns:
            How often each has been refused, by their ids.
        """
        self.update(attempts=F("attempts") - 1, refusals=Least(F("refusals") + 1, 32767))
        return dict(self.values_list("pk", "refusals"))

    def hold(self, held: str) -> int:
        """Send deliveries that were just claimed back to pending, to wait for something other than time."""
        return self.update(
            status=DeliveryStatus.PENDING,
            attempts=F("attempts") - 1,
            held=held,
            confirm_by=None,
            finished_at=None,
        )

    def let_go(self, handler: str, *, limit: int) -> int:
        """Stop holding deliveries of a handler that was paused; return how many."""
        held = self.pending().filter(held=Held.PAUSE, handler=handler).order_by("id")[:limit]
        return self.filter(pk__in=list(held.values_list("pk", flat=True)))._release()

    def let_go_stranded(self, *, paused: Any, batched: Iterable[str], limit: int) -> int:
        """Stop holding what nothing holds any more; return how many.

        A relay may have held deliveries of a handler at the very moment in which it was resumed, and one that
        was batched when they were published may be so no longer.

        Args:
            paused: the handlers that are paused, as a list or a query.
            batched: the handlers that are batched, as far as this process knows.
        """
        pending = self.pending()
        stranded = pending.filter(held=Held.PAUSE).exclude(handler__in=paused)
        stranded |= pending.filter(held=Held.BATCH).exclude(handler__in=list(batched))
        ids = list(stranded.order_by().values_list("pk", flat=True)[:limit])
        return pending.filter(pk__in=ids)._release()

    def _release(self) -> int:
        """Stop holding deliveries; what was due is so from now on, where relays look for what is new."""
        return self.update(held="", available_at=Greatest("available_at", Now()))

    def fail(self, error: str) -> int:
        """End deliveries as failed, with the reason."""
        return self.update(
            status=DeliveryStatus.FAILED, finished_at=Now(), confirm_by=None, error=storable(error)
        )

    def crash(self, *, max_crashes: int) -> dict[int, str]:
        """Count that a worker died while it ran these, and fail those of which too many did.

        Returns:
            The handlers of those that failed, by their ids.

        Raises:
            OperationalError: if somebody has locked one of them, as another copy that runs may for long.
        """
        rows = self.filter(status__in=UNSETTLED)
        if connections[self.db].features.has_select_for_update_nowait:
            rows = rows.select_for_update(nowait=True)
        with transaction.atomic(using=self.db):
            crashed = self.filter(pk__in=list(rows.values_list("pk", flat=True)))
            crashed.update(crashes=F("crashes") + 1)
            spent = crashed.filter(crashes__gte=max_crashes).exclude(status=DeliveryStatus.FAILED)
            failing = dict(spent.values_list("pk", "handler"))
            spent.fail(CRASHED.format(max_crashes))
        return failing

    def retry(self) -> int:
        """Give failed deliveries a fresh start, on an operator's word."""
        return self.failed().update(
            status=DeliveryStatus.PENDING,
            available_at=Now(),
            held="",
            attempts=0,
            refusals=0,
            # Whoever asks for it now does not think it too late.
            expires_at=None,
            # Marks the message as a copy that is looked up, since the one before may run after all.
            redeliveries=1,
            crashes=0,
            finished_at=None,
            confirm_by=None,
        )

    def replay(self, deliveries: Iterable[tuple[UUID, str, NewDelivery]]) -> int:
        """Write new deliveries of old events, as if they were published now, on an operator's word.

        Args:
            deliveries: each with the id and the key of its event.
        """
        new = [
            self.model(
                event_id=event_id,
                handler=to.handler,
                queue=to.queue,
                key=to.lane(key),
                held=to.held,
                available_at=Now() + to.wait,
            )
            for event_id, key, to in deliveries
        ]
        self.bulk_create(new, batch_size=1000)
        return len(new)

    def discard(self, reason: str, *, skipping: Sequence[str] = ()) -> int:
        """End failed or pending deliveries for good, on an operator's word; lanes behind them go on.

        Args:
            skipping: handlers whose lanes go on past a failed delivery, as for `release_lanes`.
        """
        rows = self.filter(status__in=(DeliveryStatus.FAILED, DeliveryStatus.PENDING))
        behind = list(rows.exclude(key="").order_by().values_list("handler", "key").distinct())
        # The error that made an operator give up stays below the reason.
        error = Concat(Value(f"{reason}\n\n"), "error", output_field=models.TextField())
        count = rows.update(
            status=DeliveryStatus.DISCARDED,
            finished_at=Now(),
            confirm_by=None,
            error=Case(When(error="", then=Value(reason)), default=error, output_field=models.TextField()),
        )
        if behind:
            release = partial(self.model.objects.using(self.db).release_lanes, behind, skipping=skipping)
            transaction.on_commit(release, using=self.db)
        return count

    def expire(self) -> int:
        """End deliveries that were just claimed, since it is too late for them."""
        return self.update(status=DeliveryStatus.DISCARDED, finished_at=Now(), confirm_by=None, error=EXPIRED)

"""The verbs that change a delivery's state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

from django.db import connections, models, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Concat, Greatest, Least, Now

from outbox.events import DeliveryRef

from . import handler_verbs, ordering_keys, relay_verbs, row_locks
from .delivery_filters import DUE_SINCE, DeliveryFilters
from .new_rows import NewDelivery
from .states import UNSETTLED, DeliveryState

CRASHED = (
    "crashed: {} workers died while they ran it (out of memory, segmentation fault or killed); "
    "the last log lines of their processes say more"
)
# Enough for a traceback of any sane depth; its end names the error.
MAX_ERROR_CHARS = 20_000

# The lock's key is the event, the id and the oid of the table. Another schema of the database may have a
# table with the same ids. A late message from before a restore may have the id of another event's delivery.
# The array makes the planner look up rows by id.
_SETTLE = """
WITH mine AS MATERIALIZED (
    SELECT id, event_id FROM unnest(%s::bigint[], %s::uuid[]) AS asked(id, event_id)
    WHERE pg_try_advisory_xact_lock(
        uuid_hash_extended(event_id, hashint8extended(id, 'outbox_delivery'::regclass::oid::bigint))
    )
)
UPDATE outbox_delivery d SET state = 'succeeded', finished_at = statement_timestamp(), confirm_by = NULL
FROM mine WHERE d.id = ANY(ARRAY(SELECT id FROM mine)) AND d.id = mine.id AND d.event_id = mine.event_id
  AND d.state IN ('pending', 'dispatched')
RETURNING d.id, d.event_id::text
"""


def storable(text: str) -> str:
    """Return an error without NUL and lone surrogates, cut to `MAX_ERROR_CHARS`."""
    return text[-MAX_ERROR_CHARS:].replace("\0", "\\0").encode("utf-8", "replace").decode()


class DeliveryQuerySet(DeliveryFilters):
    """Verbs on deliveries: each verb is one statement, with a condition on the states that it changes."""

    unblock_keys = ordering_keys.unblock_keys
    next_keys = ordering_keys.next_keys
    mark_dispatched = relay_verbs.mark_dispatched
    postpone = relay_verbs.postpone
    refuse = relay_verbs.refuse
    expire = relay_verbs.expire
    put_to_wait = relay_verbs.put_to_wait
    resume = relay_verbs.resume
    end_stale_waits = relay_verbs.end_stale_waits
    extend_confirm_by = relay_verbs.extend_confirm_by
    redeliver_overdue = relay_verbs.redeliver_overdue
    redeliver_lost = relay_verbs.redeliver_lost
    redeliver_orphans = relay_verbs.redeliver_orphans
    unlocked = row_locks.unlocked
    rename_handlers = handler_verbs.rename_handlers
    end_ordering = handler_verbs.end_ordering
    move_to_queues = handler_verbs.move_to_queues

    def settle(self, deliveries: Sequence[DeliveryRef]) -> set[DeliveryRef]:
        """Mark unfinished deliveries as succeeded before their run, within the transaction of the run.

        An advisory lock distinguishes duplicates of one message from the relay. A duplicate that finds the
        lock taken leaves; the row lock of a relay that commits its dispatch is waited for.

        Returns:
            The deliveries that this transaction is to run.
        """
        if connections[self.db].vendor == "postgresql":
            with connections[self.db].cursor() as cursor:
                ids, event_ids = zip(*deliveries, strict=True)
                cursor.execute(_SETTLE, [list(ids), list(event_ids)])
                return {DeliveryRef._make(row) for row in cursor.fetchall()}
        unfinished = self.filter(state__in=(DeliveryState.PENDING, DeliveryState.DISPATCHED))
        mine = set(unfinished.ids_of(deliveries))
        unfinished.filter(pk__in=mine).update(
            state=DeliveryState.SUCCEEDED, finished_at=Now(), confirm_by=None
        )
        return {one for one in deliveries if one.id in mine}

    def discard_settled(self, reasons: Mapping[DeliveryRef, str]) -> int:
        """Discard deliveries that `settle` marked and that need no run, within the same transaction."""
        # The ids suffice, since `settle` has locked the rows.
        errors = [When(pk=one.id, then=Value(storable(reason))) for one, reason in reasons.items()]
        return self.filter(pk__in=[one.id for one in reasons], state=DeliveryState.SUCCEEDED).update(
            state=DeliveryState.DISCARDED,
            error=Case(*errors, default=F("error"), output_field=models.TextField()),
        )

    def reschedule(self, delay: timedelta, error: str) -> int:
        """Return claimed deliveries to pending, due after `delay`, with the reason; their age continues."""
        return self.update(
            state=DeliveryState.PENDING,
            due_since=DUE_SINCE,
            available_at=Now() + delay,
            waits_for="",
            confirm_by=None,
            finished_at=None,
            error=storable(error),
        )

    def end_wait(self) -> int:
        """Make waiting deliveries due now or later, where the scan for new rows finds them."""
        return self.update(waits_for="", due_since=None, available_at=Greatest("available_at", Now()))

    def fail(self, error: str) -> int:
        """Mark deliveries as failed, with the reason."""
        return self.update(
            state=DeliveryState.FAILED, finished_at=Now(), confirm_by=None, error=storable(error)
        )

    def crash(self, deliveries: Collection[DeliveryRef], *, max_crashes: int) -> dict[int, str]:
        """Count that a worker died while it ran deliveries, and fail those with `max_crashes` crashes.

        Returns:
            The handlers of the deliveries that failed, by id.

        Raises:
            OperationalError: if a row is locked, as a duplicate that runs may lock it for long.
        """
        rows = self.filter(state__in=UNSETTLED)
        if connections[self.db].features.has_select_for_update_nowait:
            rows = rows.select_for_update(nowait=True)
        with transaction.atomic(using=self.db):
            crashed = self.filter(pk__in=rows.ids_of(deliveries))
            crashed.update(crashes=F("crashes") + 1)
            exhausted = crashed.filter(crashes__gte=max_crashes).exclude(state=DeliveryState.FAILED)
            failing = dict(exhausted.values_list("pk", "handler"))
            exhausted.fail(CRASHED.format(max_crashes))
        return failing

    def retry(self) -> int:
        """Make failed deliveries due again with all counters at zero, for an operator."""
        return self.failed()._resend()

    def retry_unconfirmed(self) -> int:
        """Make dispatched deliveries due again as `retry` does, except those that a running handler locks."""
        with transaction.atomic(using=self.db):
            pks = list(row_locks.unlocked(self.unconfirmed()).values_list("pk", flat=True))
            return self.unconfirmed().filter(pk__in=pks)._resend()

    def _resend(self) -> int:
        return self.update(
            state=DeliveryState.PENDING,
            available_at=Now(),
            due_since=None,
            waits_for="",
            attempts=0,
            refusals=0,
            redeliveries=0,
            crashes=0,
            # An operator who retries an expired delivery wants it to run.
            expires_at=None,
            # Marks the message as a possible duplicate: the message before may still run.
            resends=Least(F("resends") + 1, relay_verbs.MAX_COUNT),
            finished_at=None,
            confirm_by=None,
            message_options=None,
        )

    def replay(self, deliveries: Iterable[tuple[UUID, str, NewDelivery]]) -> int:
        """Write new deliveries of old events, as if they were published now, for an operator.

        Args:
            deliveries: tuples of the event's id, the event's key and the new delivery.
        """
        new = [
            self.model(
                event_id=event_id,
                handler=to.handler,
                queue=to.queue,
                key=to.ordering_key(key),
                waits_for=to.waits_for,
                available_at=Now() + to.wait,
                replayed=True,
            )
            for event_id, key, to in deliveries
        ]
        self.bulk_create(new, batch_size=1000)
        return len(new)

    def discard(self, reason: str, *, skipping: Sequence[str] = ()) -> int:
        """Discard failed or pending deliveries, for an operator, and unblock their ordering keys.

        Args:
            reason: stored in front of the delivery's last error.
            skipping: handlers whose failed deliveries do not block their key, as for `unblock_keys`.
        """
        rows = self.filter(state__in=(DeliveryState.FAILED, DeliveryState.PENDING))
        keys = list(rows.exclude(key="").order_by().values_list("handler", "key").distinct())
        error = Concat(Value(f"{reason}\n\n"), "error", output_field=models.TextField())
        count = rows.update(
            state=DeliveryState.DISCARDED,
            finished_at=Now(),
            confirm_by=None,
            error=Case(When(error="", then=Value(reason)), default=error, output_field=models.TextField()),
        )
        if keys:
            unblock = partial(self.model.objects.using(self.db).unblock_keys, keys, skipping=skipping)
            transaction.on_commit(unblock, using=self.db)
        return count

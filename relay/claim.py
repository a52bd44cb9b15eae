"""The claim: lock due deliveries, mark them dispatched, and return what to send.

The row locks are the lease: they go with the transaction, whatever becomes of the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import DurationField, ExpressionWrapper, F, Q
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import Delivery, DeliveryQuerySet, Event
from outbox.registry import Batching
from outbox.versions import UNWRITTEN

from .copies import microseconds
from .messages import Claimed

# A batch is bounded in bytes as well as in rows, so that neither a relay's memory nor the time for which it
# holds row locks depends on how large payloads are. The size is what the rows take in the table.
MAX_BATCH_BYTES = 16 * 1024 * 1024


class Taken(NamedTuple):
    """What a claim got.

    Args:
        more: whether more may be due.
        held_lanes: lanes of which a delivery was due, but stands behind another one.
    """

    rows: list[Claimed]
    more: bool
    held_lanes: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a relay asks for, within the current transaction.

    Args:
        limit: rows at most.
        queues: only deliveries to these queues; empty for all.
    """

    database: str
    limit: int
    queues: tuple[str, ...] = ()

    def take(self, *, leave_lanes: bool = False) -> Taken:
        """Claim due deliveries in the order in which they are due, other than those of lanes if asked to."""
        if self._is_postgresql:
            return self._run(_CLAIM, where="AND key = ''" if leave_lanes else "")
        due = self._deliveries.due(self.queues)
        return self._take_portably(due.filter(key="") if leave_lanes else due)

    def take_lanes(self, *, skipping: Sequence[str]) -> Taken:
        """Claim the first unfinished delivery of each lane; hold those that are due behind another one.

        Args:
            skipping: handlers whose lanes go on past a failed delivery.
        """
        if self._is_postgresql:
            return self._run(_CLAIM_LANES, list(skipping), where="AND key <> ''")
        due = list(self._deliveries.due(self.queues).exclude(key="")[: self.limit])
        behind = [row for row in due if self._is_behind(row, skipping)]
        self._deliveries.filter(pk__in=[row.pk for row in behind]).update(held=Delivery.Held.LANE)
        taken = self._take_portably([row for row in due if row not in behind])
        held = frozenset((row.handler, row.key) for row in behind)
        return Taken(taken.rows, len(due) == self.limit, held)

    def take_batch(self, handler: str, batch: Batching) -> Taken:
        """Claim a batch of one handler, if it is full or its oldest delivery has waited long enough."""
        if self._is_postgresql:
            return self._execute(_CLAIM_BATCH, [handler, batch.wait, batch.size, batch.size], batch.size)
        held = self._deliveries.held_for(handler, batch.wait)
        if connections[self.database].features.has_select_for_update_skip_locked:
            held = held.select_for_update(skip_locked=True, no_key=True)
        rows = list(held[: batch.size])
        # Asked while the rows are locked, so that two relays cannot run half a batch each.
        ripe = self._deliveries.filter(pk__in=[row.pk for row in rows], available_at__lte=Now())
        if len(rows) < batch.size and not ripe.exists():
            return Taken([], False)
        return Taken(self._mark(rows), len(rows) == batch.size)

    def ripe_in(self, batches: Mapping[str, Batching]) -> dict[str, float]:
        """Return, by handler that has held deliveries, in how many seconds a batch of it is to run.

        One statement looks at no more than one batch's rows of each handler.
        """
        if not batches:
            return {}
        if not self._is_postgresql:
            return {handler: self._ripe_in_portably(handler, batch) for handler, batch in batches.items()}
        names, rules = list(batches), list(batches.values())
        parameters: list[Any] = [names, [rule.size for rule in rules], [rule.wait for rule in rules]]
        with connections[self.database].cursor() as cursor:
            cursor.execute(_RIPE_IN, parameters)
            return dict(cursor.fetchall())

    def due_in(self) -> float:
        """Return in how many seconds the next delivery is due: at most 0.0 if one is, else up to infinity."""
        pending = self._deliveries.pending().filter(held="").order_by("available_at", "id")
        if self.queues:
            pending = pending.filter(queue__in=self.queues)
        wait = pending.annotate(due_in=_DUE_IN).values_list("due_in", flat=True)[:1]
        return next((duration.total_seconds() for duration in wait), inf)

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self.database)
        return deliveries

    @property
    def _is_postgresql(self) -> bool:
        return connections[self.database].vendor == "postgresql"

    def _run(self, statement: str, *lane_parameters: Any, where: str) -> Taken:
        parameters: list[Any] = [list(self.queues)] if self.queues else []
        queues = "AND queue = ANY(%s)" if self.queues else ""
        parameters += [self.limit, *lane_parameters]
        return self._execute(statement, parameters, self.limit, where=f"{where} {queues}")

    def _execute(self, statement: str, parameters: Sequence[Any], limit: int, *, where: str = "") -> Taken:
        settings = get_settings()
        marking: list[Any] = [settings.confirm_timeout] if settings.confirm else []
        mark = _DISPATCHED if settings.confirm else _SUCCEEDED
        with connections[self.database].cursor() as cursor:
            cursor.execute(statement.format(where=where, mark=mark), [*parameters, *marking, MAX_BATCH_BYTES])
            rows = cursor.fetchall()
        # UPDATE returns rows in no particular order.
        rows.sort()
        held = frozenset((row[2], row[4]) for row in rows if row[-2])
        looked_at = rows[0][-1] if rows else 0
        # Fewer than were looked at if they were cut by their bytes.
        more = looked_at >= limit or len(rows) < looked_at
        return Taken([Claimed._make(row[:-2]) for row in rows if not row[-2]], more, held)

    # -- databases without the fast paths

    def _take_portably(self, due: DeliveryQuerySet | list[Delivery]) -> Taken:
        if isinstance(due, DeliveryQuerySet):
            if connections[self.database].features.has_select_for_update_skip_locked:
                due = due.select_for_update(skip_locked=True)
            due = list(due[: self.limit])
        return Taken(self._mark(due), len(due) == self.limit)

    def _mark(self, rows: Sequence[Delivery]) -> list[Claimed]:
        settings = get_settings()
        events = Event.objects.using(self.database).in_bulk({row.event_id for row in rows})
        expired = self._expired(rows)
        claimed = _that_fit(_claimed(row, events.get(row.event_id), row.pk in expired) for row in rows)
        taken = self._deliveries.filter(pk__in=[row.delivery_id for row in claimed])
        taken.mark_dispatched(settings.confirm_timeout if settings.confirm else None)
        # One statement has marked them all, at one moment.
        for moment in filter(None, taken.values_list("dispatched_at", flat=True)[:1]):
            claimed = [row._replace(dispatched_at_us=microseconds(moment)) for row in claimed]
        return claimed

    def _expired(self, rows: Sequence[Delivery]) -> set[int]:
        perishable = [row.pk for row in rows if row.expires_at is not None]
        if not perishable:
            return set()
        # Asked of the database, whose clock decides.
        expired = self._deliveries.filter(pk__in=perishable, expires_at__lte=Now())
        return set(expired.values_list("pk", flat=True))

    def _is_behind(self, row: Delivery, skipping: Sequence[str]) -> bool:
        lane = self._deliveries.lane(row.handler, row.key, skipping=skipping)
        return lane.filter(Q(pk__lt=row.pk) | Q(status=Delivery.Status.DISPATCHED)).exists()

    def _ripe_in_portably(self, handler: str, batch: Batching) -> float:
        held = self._deliveries.held_for(handler, batch.wait)
        rows = list(held.annotate(due_in=_DUE_IN).values_list("due_in", flat=True)[: batch.size])
        if len(rows) == batch.size:
            return 0.0
        return min((row.total_seconds() for row in rows), default=inf)


_DUE_IN = ExpressionWrapper(F("available_at") - Now(), output_field=DurationField())


def _that_fit(rows: Iterable[Claimed]) -> list[Claimed]:
    """Keep the first ones, as many as fit into a batch's bytes, but at least one."""
    kept: list[Claimed] = []
    size = 0
    for row in rows:
        size += len(row.payload)
        if kept and size > MAX_BATCH_BYTES:
            break
        kept.append(row)
    return kept


def _claimed(row: Delivery, event: Event | None, expired: bool) -> Claimed:
    return Claimed(
        delivery_id=row.pk,
        event_id=row.event_id,
        handler=row.handler,
        queue=row.queue,
        key=event.key if event else "",
        attempts=row.attempts + 1,
        redeliveries=row.redeliveries,
        topic=event.topic if event else "",
        payload=json.dumps(event.payload) if event else "",
        headers=json.dumps(event.headers) if event else "",
        created_at=event.created_at.isoformat() if event else "",
        expired=expired,
        version=event.version if event else UNWRITTEN,
    )


_DISPATCHED = "status = 'dispatched', confirm_by = statement_timestamp() + %s"
# With CONFIRM off the broker's word is the last one heard of a delivery.
_SUCCEEDED = "status = 'succeeded', finished_at = statement_timestamp()"

# The due rows in order; LIMIT bounds them, and what another relay holds is passed over.
_LOCKED = """
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE status = 'pending' AND held = '' AND available_at <= statement_timestamp() {where}
    ORDER BY available_at, id
    LIMIT %s
    FOR NO KEY UPDATE SKIP LOCKED
)"""

# Only as many as fit into the batch's bytes; the locks of the rest go with the transaction.
_SIZED = """
sized AS (
    SELECT l.id, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(pg_column_size(e.payload), 0)) OVER (ORDER BY l.available_at, l.id)
               - coalesce(pg_column_size(e.payload), 0) AS bytes_before
    FROM {source} l LEFT JOIN outbox_event e ON e.id = l.event_id
)"""

# JSON is asked for as text, so that nobody decodes it on its way to the broker. A delivery whose event is
# gone comes with an empty payload.
_MARKED = """
UPDATE outbox_delivery d SET
    {mark},
    attempts = least(d.attempts + 1, 32767),
    dispatched_at = statement_timestamp()
FROM sized s
WHERE d.id = s.id AND s.bytes_before < %s
RETURNING d.id, d.event_id, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
          coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
          coalesce(s.created_at::text, ''), coalesce(d.expires_at <= statement_timestamp(), false),
          (extract(epoch FROM d.dispatched_at) * 1000000)::bigint, coalesce(s.version, 1),
          false AS held, (SELECT count(*) FROM locked)
"""

_CLAIM = f"WITH {_LOCKED}, {_SIZED.replace('{source}', 'locked')} {_MARKED}"

# A row behind an unfinished one of its lane is held, so that no later claim walks past it again. The relay
# looks at its lane once more after the commit, since the one before may have finished in the meantime.
_CLAIM_LANES = f"""
WITH {_LOCKED}, blocked AS MATERIALIZED (
    SELECT l.id FROM locked l
    WHERE EXISTS (
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.id <> l.id
          AND (p.id < l.id OR p.status = 'dispatched')
          AND p.status IN ('pending', 'dispatched', 'failed')
          AND (p.status <> 'failed' OR l.handler <> ALL(%s::text[]))
    )
), first AS (
    SELECT * FROM locked l WHERE NOT EXISTS (SELECT 1 FROM blocked b WHERE b.id = l.id)
), {_SIZED.replace("{source}", "first")}, marked AS ({_MARKED}), hold AS (
    UPDATE outbox_delivery d SET held = 'lane' FROM blocked b WHERE d.id = b.id
    RETURNING d.id, d.event_id, d.handler, d.queue, d.key, 0, 0, '', '', '', '', false, 0, 0, true,
              (SELECT count(*) FROM locked)
)
SELECT * FROM marked UNION ALL SELECT * FROM hold
"""  # noqa: S608  # made of constants

# Whether the batch is ripe is asked while its rows are locked, so that two relays cannot run half of it each.
_CLAIM_BATCH = f"""
WITH locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE status = 'pending' AND held <> '' AND held = 'batch' AND handler = %s
      AND available_at <= statement_timestamp() + %s
    ORDER BY id
    LIMIT %s
    FOR NO KEY UPDATE SKIP LOCKED
), ripe AS (
    SELECT * FROM locked
    WHERE (SELECT count(*) >= %s OR min(available_at) <= statement_timestamp() FROM locked)
), {_SIZED.replace("{source}", "ripe")} {_MARKED}
"""  # noqa: S608  # made of constants

# A held row is eligible once its event is due, and becomes due itself when it has waited for its batch.
_RIPE_IN = """
SELECT handler,
       CASE WHEN waiting.rows >= rule.size THEN 0.0
            ELSE extract(epoch FROM waiting.oldest - statement_timestamp()) END::float8
FROM unnest(%s::text[], %s::integer[], %s::interval[]) AS rule(handler, size, wait)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, min(available_at) AS oldest FROM (
        SELECT available_at FROM outbox_delivery d
        WHERE d.status = 'pending' AND d.held <> '' AND d.held = 'batch' AND d.handler = rule.handler
          AND d.available_at <= statement_timestamp() + rule.wait
        ORDER BY d.id LIMIT rule.size
    ) AS batch
) AS waiting
WHERE waiting.rows > 0
"""

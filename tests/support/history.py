"""A table with a long history, and a few due rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .query_plans import TABLES

RETAINED = 100_000
SCHEDULED = 10_000
BLOCKED = 20_000
DUE = 20
# One event each: handler, key, waits_for, state, and due time in seconds from now.
ROWS = [
    (RETAINED, ("flat", "", "", "succeeded", -3600)),
    (SCHEDULED, ("flat", "", "", "pending", 3600 * 24)),
    (SCHEDULED, ("batches", "", "batch", "pending", 3600 * 24)),
    (SCHEDULED, ("flat", "", "", "dispatched", -3600)),
    (SCHEDULED // 10, ("flat", "", "", "pending", -60)),
    (BLOCKED, ("ordered", "busy", "key", "pending", -60)),
    (SCHEDULED, ("sent", "", "", "dispatched", -3600)),
    (DUE, ("ordered", "", "", "pending", -60)),
    (DUE, ("batches", "", "batch", "pending", -60)),
    (DUE, ("record", "", "", "dispatched", -7200)),
]

_EVENTS = """
INSERT INTO outbox_event (id, topic, key, dedup_key, payload, headers)
SELECT (lpad(to_hex(n), 12, '0') || '70008' || repeat('0', 15))::uuid, 'flaky.x', '', 'once-' || n, '{}', '{}'
FROM generate_series(0, %s - 1) AS n
"""

# Deliveries of `record` should have been confirmed a minute ago; the other dispatched ones have an hour left.
_DELIVERIES = """
INSERT INTO outbox_delivery
    (event_id, handler, queue, key, waits_for, state, available_at, confirm_by, finished_at)
SELECT (lpad(to_hex(n), 12, '0') || '70008' || repeat('0', 15))::uuid, handler, 'flat',
       CASE WHEN handler IN ('ordered', 'sent') AND key = '' THEN 'key-' || n ELSE key END,
       waits_for, state, now() + n * interval '1 microsecond' + due * interval '1 second',
       CASE WHEN handler = 'record' THEN now() - interval '1 minute'
            WHEN state = 'dispatched' THEN now() + interval '1 hour' END,
       CASE WHEN state = 'succeeded' THEN now() END
FROM generate_series(%s, %s - 1) AS n,
     (VALUES (%s, %s, %s, %s, %s)) AS each(handler, key, waits_for, state, due)
"""


@contextmanager
def unvacuumed(cursor: Any) -> Iterator[None]:
    """Keep the statistics of empty tables, and empty the tables at the end."""
    for table in TABLES:
        cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        cursor.execute(f"VACUUM ANALYZE {table}")
    try:
        yield
    finally:
        cursor.execute("TRUNCATE outbox_event, outbox_delivery")
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


def fill(cursor: Any) -> None:
    """Write the rows."""
    cursor.execute(_EVENTS, [sum(count for count, _row in ROWS)])
    first = 0
    for count, row in ROWS:
        cursor.execute(_DELIVERIES, [first, first + count, *row])
        first += count

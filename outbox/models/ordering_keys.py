"""The verbs on ordering keys: which keys are blocked, and how their next delivery is unblocked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from django.db import connections
from django.db.models import Q

from .states import WaitsFor

if TYPE_CHECKING:
    from .delivery_verbs import DeliveryQuerySet

# Thousands of deliveries may share a key. Its first unfinished delivery and its dispatched one are each found
# through an index, so the cost does not grow with their number. A duplicate of a transactional handler may
# have locked a row for long, so the statement skips locked rows; maintenance unblocks their keys later.
_UNBLOCK = """
WITH blocked AS MATERIALIZED (
    SELECT head.id FROM unnest(%s::text[], %s::text[]) AS asked(handler, key)
    CROSS JOIN LATERAL (
        SELECT p.id, p.state, p.waits_for FROM outbox_delivery p
        WHERE p.handler = asked.handler AND p.key = asked.key AND p.key <> ''
          AND p.state IN ('pending', 'dispatched', 'failed')
          AND (p.state <> 'failed' OR p.handler <> ALL(%s::text[]))
        ORDER BY p.id LIMIT 1
    ) AS head
    LEFT JOIN LATERAL (
        SELECT true AS found FROM outbox_delivery p
        WHERE p.handler = asked.handler AND p.key = asked.key AND p.key <> '' AND p.state = 'dispatched'
        LIMIT 1
    ) AS sent ON true
    WHERE head.waits_for = 'key' AND head.state = 'pending' AND sent.found IS NULL
), free AS (
    SELECT d.id FROM outbox_delivery d
    WHERE d.id = ANY(ARRAY(SELECT id FROM blocked)) AND d.state = 'pending' AND d.waits_for = 'key'
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE outbox_delivery d SET
    waits_for = '', available_at = greatest(d.available_at, statement_timestamp()), due_since = NULL
WHERE d.id = ANY(ARRAY(SELECT id FROM free))
"""

# One step per ordering key, to the first row of the next key in the index: neither the deliveries behind the
# first of a key nor any other rows are read.
_NEXT_KEYS = """
WITH RECURSIVE head AS (
    (
        SELECT handler, key, state, waits_for, 1 AS number FROM outbox_delivery
        WHERE (handler, key) > (%s, %s) AND key <> '' AND state IN ('pending', 'dispatched', 'failed')
        ORDER BY handler, key, id LIMIT 1
    )
    UNION ALL
    SELECT later.*, head.number + 1 FROM head CROSS JOIN LATERAL (
        SELECT p.handler, p.key, p.state, p.waits_for FROM outbox_delivery p
        WHERE (p.handler, p.key) > (head.handler, head.key) AND p.key <> ''
          AND p.state IN ('pending', 'dispatched', 'failed')
        ORDER BY p.handler, p.key, p.id LIMIT 1
    ) AS later
    WHERE head.number < %s
)
SELECT handler, key, number FROM head
WHERE number = %s OR state = 'failed' OR (state = 'pending' AND waits_for = 'key')
ORDER BY number
"""

BEFORE_ALL = ("", "")


def unblock_keys(
    deliveries: DeliveryQuerySet, keys: Iterable[tuple[str, str]], *, skipping: Sequence[str]
) -> int:
    """Make the first unfinished delivery of each ordering key due, unless it is locked; return how many.

    Call it in a separate transaction, after the commit that finished the delivery before or blocked this one.
    When two processes do these at the same time, the later process then sees both changes.

    Args:
        keys: pairs of handler and ordering key.
        skipping: handlers whose failed deliveries do not block their key.
    """
    pairs = sorted(set(keys))
    if not pairs:
        return 0
    if connections[deliveries.db].vendor != "postgresql":
        return sum(_unblock_key(deliveries, *pair, skipping=skipping) for pair in pairs)
    handlers, their_keys = map(list, zip(*pairs, strict=True))
    with connections[deliveries.db].cursor() as cursor:
        cursor.execute(_UNBLOCK, [handlers, their_keys, list(skipping)])
        return int(cursor.rowcount)


def next_keys(
    deliveries: DeliveryQuerySet, *, after: tuple[str, str], limit: int
) -> tuple[list[tuple[str, str]], tuple[str, str]]:
    """Return the next ordering keys whose first unfinished delivery may be blocked.

    Args:
        after: the pair of handler and ordering key after which to begin.
        limit: keys with unfinished deliveries that are examined at most.

    Returns:
        Pairs of handler and ordering key in order, and the pair after which to continue: `BEFORE_ALL` if all
        keys have been examined.
    """
    if connections[deliveries.db].vendor == "postgresql":
        with connections[deliveries.db].cursor() as cursor:
            cursor.execute(_NEXT_KEYS, [*after, limit, limit])
            found = cursor.fetchall()
        keys = [(handler, key) for handler, key, _number in found]
        return keys, keys[-1] if found and found[-1][2] == limit else BEFORE_ALL
    handler, key = after
    later = Q(handler=handler, key__gt=key) | Q(handler__gt=handler)
    blocked = deliveries.pending().filter(later, waits_for=WaitsFor.KEY).order_by("handler", "key")
    keys = list(blocked.values_list("handler", "key").distinct()[:limit])
    return keys, keys[-1] if len(keys) == limit else BEFORE_ALL


def _unblock_key(deliveries: DeliveryQuerySet, handler: str, key: str, *, skipping: Sequence[str]) -> int:
    unfinished = deliveries.unfinished_of_key(handler, key, skipping=skipping)
    head = unfinished.first()
    if head is None or head.waits_for != WaitsFor.KEY or unfinished.unconfirmed().exists():
        return 0
    return deliveries.pending().filter(pk=head.pk).end_wait()

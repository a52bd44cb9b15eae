"""The verbs on lanes: what waits in them, and what lets it go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from django.db import connections
from django.db.models import Q

from .states import Held

if TYPE_CHECKING:
    from .verbs import DeliveryQuerySet

# A lane may be long: its first delivery, and one that is dispatched, are each found by an index of their own.
_RELEASE_LANES = """
UPDATE outbox_delivery d SET held = '', available_at = greatest(d.available_at, statement_timestamp())
FROM unnest(%s::text[], %s::text[]) AS lane(handler, key)
CROSS JOIN LATERAL (
    SELECT p.id, p.status, p.held FROM outbox_delivery p
    WHERE p.handler = lane.handler AND p.key = lane.key AND p.key <> ''
      AND p.status IN ('pending', 'dispatched', 'failed')
      AND (p.status <> 'failed' OR p.handler <> ALL(%s::text[]))
    ORDER BY p.id LIMIT 1
) AS head
LEFT JOIN LATERAL (
    SELECT true AS found FROM outbox_delivery p
    WHERE p.handler = lane.handler AND p.key = lane.key AND p.key <> '' AND p.status = 'dispatched'
    LIMIT 1
) AS sent ON true
WHERE d.id = head.id AND head.held = 'lane' AND head.status = 'pending' AND d.status = 'pending'
  AND sent.found IS NULL
"""


def release_lanes(
    deliveries: DeliveryQuerySet, lanes: Iterable[tuple[str, str]], *, skipping: Sequence[str]
) -> int:
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
    if connections[deliveries.db].vendor != "postgresql":
        return sum(_release_lane(deliveries, *pair, skipping=skipping) for pair in pairs)
    handlers, keys = map(list, zip(*pairs, strict=True))
    with connections[deliveries.db].cursor() as cursor:
        cursor.execute(_RELEASE_LANES, [handlers, keys, list(skipping)])
        return int(cursor.rowcount)


def held_lanes(deliveries: DeliveryQuerySet, *, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
    """Return lanes in which deliveries are held, in their order, beginning after one of them."""
    handler, key = after
    later = Q(handler=handler, key__gt=key) | Q(handler__gt=handler)
    held = deliveries.pending().filter(later, held=Held.LANE).order_by("handler", "key")
    return list(held.values_list("handler", "key").distinct()[:limit])


def _release_lane(deliveries: DeliveryQuerySet, handler: str, key: str, *, skipping: Sequence[str]) -> int:
    lane = deliveries.lane(handler, key, skipping=skipping)
    head = lane.first()
    if head is None or head.held != Held.LANE or lane.unconfirmed().exists():
        return 0
    return deliveries.pending().filter(pk=head.pk)._release()

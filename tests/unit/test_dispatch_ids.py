"""The ids of dispatches of one delivery."""

from __future__ import annotations

from itertools import combinations
from uuid import UUID, uuid4

from dramatiq.brokers.stub import StubBroker

from relay.messages.dispatch_ids import OverdueDelivery, dispatch_id, possible_dispatch_ids
from relay.messages.single import OutgoingMessage
from tests.support.outgoing import make_actor, make_claimed, make_template

EVENT = str(uuid4())
NOW_US = 1_800_000_000_000_000


def id_of(event: str = EVENT, delivery: int = 7, dispatched_at_us: int = NOW_US) -> str:
    """Return the id of a dispatch, after a check that an overdue delivery has the same one."""
    claimed = make_claimed(delivery_id=delivery, event_id=event, dispatched_at_us=dispatched_at_us)
    found = dispatch_id(OutgoingMessage(claimed, make_template(make_actor(StubBroker()))))
    assert possible_dispatch_ids(OverdueDelivery(delivery, UUID(event), "a", dispatched_at_us)) == [found]
    return found


def test_each_dispatch_of_each_delivery_has_its_own_id() -> None:
    ids = [
        id_of(),
        id_of(dispatched_at_us=NOW_US + 1),
        id_of(delivery=8),
        # Another database may have a delivery with the same id.
        id_of(event=f"{EVENT[:-5]}{int(EVENT[-5:], 16) ^ 1:05x}"),
    ]
    assert all(left != right for left, right in combinations(ids, 2))


def test_a_dispatch_id_has_the_form_of_a_random_uuid() -> None:
    for found in (id_of(), id_of(delivery=2**48 - 1), id_of(dispatched_at_us=0)):
        assert str(UUID(found)) == found
        assert UUID(found).version == 4

"""What a copy of one delivery's message is called."""

from __future__ import annotations

from itertools import combinations
from uuid import UUID, uuid4

from dramatiq.brokers.stub import StubBroker

from relay.copies import Overdue, copy_id, copy_ids
from relay.messages import Outgoing
from tests.outgoing import make_actor, make_claimed, make_template

EVENT = str(uuid4())
NOW_US = 1_800_000_000_000_000


def name_of(event: str = EVENT, delivery: int = 7, dispatched_at_us: int = NOW_US) -> str:
    """Return the name of a copy, which is what an overdue delivery looks for."""
    claimed = make_claimed(delivery_id=delivery, event_id=event, dispatched_at_us=dispatched_at_us)
    name = copy_id(Outgoing(claimed, make_template(make_actor(StubBroker()))))
    assert copy_ids(Overdue(delivery, UUID(event), "a", dispatched_at_us)) == [name]
    return name


def test_each_dispatch_of_each_delivery_has_a_name_of_its_own() -> None:
    names = [
        name_of(),
        name_of(dispatched_at_us=NOW_US + 1),
        name_of(delivery=8),
        # Another database may have a delivery of that number.
        name_of(event=f"{EVENT[:-5]}{int(EVENT[-5:], 16) ^ 1:05x}"),
    ]
    assert all(one != other for one, other in combinations(names, 2))


def test_a_name_looks_like_those_that_dramatiq_draws() -> None:
    for name in (name_of(), name_of(delivery=2**48 - 1), name_of(dispatched_at_us=0)):
        assert str(UUID(name)) == name
        assert UUID(name).version == 4

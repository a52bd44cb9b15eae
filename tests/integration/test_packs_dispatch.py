"""Packs on their way to the broker: which go, and what is left when one is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

import outbox
from outbox.errors import BrokerUnavailable
from outbox.registry import registry
from relay.claimed import Claimed
from relay.dispatch import Dispatcher
from relay.marking import Outcome
from relay.messages import Outgoing
from relay.publishers import PartlySent
from relay.publishers.base import Refusal
from tests.outgoing import make_claimed

Publish = Callable[[Sequence[Outgoing]], list[Refusal]]


class Publisher:
    """A way to a broker that does what the test says, one call after the other."""

    def __init__(self, *replies: Publish) -> None:
        self.replies = list(replies)
        self.sent: list[list[int]] = []

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> list[Refusal]:
        self.sent += [[row.delivery_id for row in one.rows] for one in outgoing]
        return self.replies.pop(0)(outgoing)

    def close(self) -> None: ...


def take_all(outgoing: Sequence[Outgoing]) -> list[Refusal]:
    return []


def refuse_what_holds_2(outgoing: Sequence[Outgoing]) -> list[Refusal]:
    return [Refusal(one, "poison") for one in outgoing if 2 in ids(one.rows)]


def be_away(outgoing: Sequence[Outgoing]) -> list[Refusal]:
    raise BrokerUnavailable("gone")


def take_half(outgoing: Sequence[Outgoing]) -> list[Refusal]:
    raise PartlySent("no time", outgoing[1:])


def refuse_one_and_take_one(outgoing: Sequence[Outgoing]) -> list[Refusal]:
    raise PartlySent("no time", outgoing[2:], [Refusal(outgoing[0], "poison")])


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(middleware=[])
    outbox.handler("pack.it", name="packed", pack=3, broker=broker)(lambda event: None)
    outbox.handler("pack.it", name="plain", broker=broker)(lambda event: None)
    yield broker
    for name in ("packed", "plain"):
        registry.remove(name)


def send(broker: dramatiq.Broker, publisher: Publisher, claimed: Sequence[Claimed]) -> Outcome:
    with closing(Dispatcher(database="default")) as dispatcher:
        dispatcher._publishers[broker] = publisher  # type: ignore[assignment]
        return dispatcher.send(claimed, timeout_s=10)


def claimed(*deliveries: int, handler: str = "packed") -> list[Claimed]:
    return [make_claimed(delivery_id=pk, handler=handler) for pk in deliveries]


def ids(rows: Sequence[Claimed]) -> list[int]:
    return sorted(row.delivery_id for row in rows)


def test_only_what_asks_for_it_is_packed(broker: StubBroker) -> None:
    publisher = Publisher(take_all)
    rows = [*claimed(3, 5, 8), *claimed(4, 7, handler="plain")]
    outcome = send(broker, publisher, rows)
    assert sorted(publisher.sent) == [[3, 5], [4], [7], [8]]
    assert ids(outcome.sent) == [3, 4, 5, 7, 8]


def test_of_a_refused_pack_only_the_bad_one_stays(broker: StubBroker) -> None:
    publisher = Publisher(refuse_what_holds_2, refuse_what_holds_2)
    outcome = send(broker, publisher, claimed(0, 1, 2, 3, 4, 5))
    assert publisher.sent == [[0, 1, 2], [3, 4, 5], [0], [1], [2]]
    assert ids(outcome.sent) == [0, 1, 3, 4, 5]
    assert [(row.delivery_id, error) for row, error in outcome.refused] == [(2, "poison")]


def test_a_broker_that_goes_away_before_the_bad_one_is_found_keeps_what_it_has(broker: StubBroker) -> None:
    outcome = send(broker, Publisher(refuse_what_holds_2, be_away), claimed(0, 1, 2, 3, 4, 5))
    assert ids(outcome.sent) == [3, 4, 5]
    assert ids([row for row, *_why in outcome.released]) == [0, 1, 2]
    assert outcome.refused == []


def test_packs_that_found_no_time_stay(broker: StubBroker) -> None:
    outcome = send(broker, Publisher(take_half), claimed(0, 1, 2, 3, 4, 5))
    assert ids(outcome.sent) == [0, 1, 2]
    assert ids([row for row, *_why in outcome.released]) == [3, 4, 5]


def test_what_was_refused_before_the_time_ran_out_has_not_gone(broker: StubBroker) -> None:
    outcome = send(broker, Publisher(refuse_one_and_take_one), claimed(1, 2, 3, handler="plain"))
    assert ids(outcome.sent) == [2]
    assert [(row.delivery_id, error) for row, error in outcome.refused] == [(1, "poison")]
    assert ids([row for row, *_why in outcome.released]) == [3]


def test_a_broker_that_is_away_takes_no_pack(broker: StubBroker) -> None:
    with pytest.raises(BrokerUnavailable):
        send(broker, Publisher(be_away), claimed(0, 1, 2))

"""Which deliveries travel together, and by what name each of them knows its message."""

from __future__ import annotations

from uuid import UUID

import dramatiq
import pytest
from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker
from hypothesis import given
from hypothesis import strategies as st

from relay import packing
from relay.batches import OutgoingPack
from relay.claimed import Claimed
from relay.copies import Overdue, copy_id, copy_ids
from relay.packing import packs_of
from tests.outgoing import make_actor, make_claimed, make_template

IDS = st.sets(st.integers(1, 3000) | st.integers(1, 2**63 - 1), min_size=1, max_size=60)


def claimed(ids: set[int] | range, **fields: object) -> list[Claimed]:
    return [make_claimed(delivery_id=pk, **fields) for pk in sorted(ids)]


@pytest.fixture(scope="module")
def broker() -> Broker:
    return StubBroker()


def ids_of(packs: object) -> list[list[int]]:
    return [[row.delivery_id for row in pack] for pack in packs]  # type: ignore[attr-defined]


@given(IDS, st.integers(1, 20))
def test_every_delivery_is_in_one_pack_of_at_most_the_size(ids: set[int], size: int) -> None:
    packs = ids_of(packs_of(claimed(ids), size))
    assert [pk for pack in packs for pk in pack] == sorted(ids)
    assert all(1 <= len(pack) <= size for pack in packs)


@given(IDS, st.integers(1, 20))
def test_a_delivery_knows_the_name_of_its_pack_and_no_other(ids: set[int], size: int) -> None:
    actor = dramatiq.actor(lambda event: None, broker=StubBroker(), actor_name="a")
    packs = [OutgoingPack(rows, make_template(actor), size=size) for rows in packs_of(claimed(ids), size)]
    names = [copy_id(pack) for pack in packs]
    assert len(set(names)) == len(names)
    for pack, name in zip(packs, names, strict=True):
        for row in pack.rows:
            overdue = Overdue(
                row.delivery_id, UUID(row.event_id), row.handler, row.dispatched_at_us, "queue", pack=size
            )
            assert set(copy_ids(overdue)) & set(names) == {name}


def test_few_deliveries_share_a_pack_however_far_apart_they_are() -> None:
    assert ids_of(packs_of(claimed({1_600_000, 2_000_000, 3_000_000}), 3)) == [
        [1_600_000, 2_000_000, 3_000_000]
    ]


def test_what_was_written_together_fills_its_packs() -> None:
    assert [len(pack) for pack in packs_of(claimed(range(500, 1000)), 50)] == [50] * 10
    assert [len(pack) for pack in packs_of(claimed(range(510, 1010)), 50)] == [40, *[50] * 9, 10]


def test_what_is_large_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_PACK_CHARS", 100)
    assert ids_of(packs_of(claimed(range(1, 4), payload="1" * 60), 5)) == [[1], [2], [3]]


def test_deliveries_of_a_refused_pack_go_under_names_of_their_own(broker: Broker) -> None:
    pack = OutgoingPack(claimed(range(1, 4)), make_template(make_actor(broker)), size=5)
    names = {copy_id(one) for one in (pack, *pack.one_by_one())}
    assert len(names) == 4

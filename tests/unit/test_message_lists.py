"""Messages that carry several deliveries of one handler."""

from __future__ import annotations

from typing import Any

import pytest
from dramatiq import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.batches import OutgoingBatch, OutgoingList, OutgoingPack
from relay.claimed import Claimed
from relay.splicing import Template
from tests.outgoing import make_claimed, make_template
from tests.unit.test_messages import JSON, NAMES, OBJECTS, Actor, json_texts

HANDLER = 'a "quoted" handler'
PRIORITIES = st.sampled_from([{}, {"broker_priority": 5}])


@st.composite
def templates(draw: st.DrawFn) -> Template:
    actor = Actor(draw(NAMES), **draw(PRIORITIES))
    return make_template(actor, handler=HANDLER, database=draw(NAMES))


@st.composite
def rows(draw: st.DrawFn) -> list[Claimed]:
    return [
        make_claimed(
            handler=HANDLER,
            delivery_id=draw(st.integers(1, 2**63 - 1)),
            event_id=str(draw(st.uuids())),
            key=draw(NAMES),
            topic=draw(NAMES),
            attempts=draw(st.integers(1, 3)),
            redeliveries=draw(st.integers(0, 3)),
            payload=draw(json_texts(JSON)),
            headers=draw(json_texts(OBJECTS)),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]


@st.composite
def lists(draw: st.DrawFn) -> OutgoingList:
    if draw(st.booleans()):
        return OutgoingBatch(draw(rows()), draw(templates()))
    return OutgoingPack(draw(rows()), draw(templates()), size=3)


def pack_of(*rows: Claimed) -> OutgoingPack:
    return OutgoingPack(rows, make_template(Actor()), size=50)


def option_of(one: OutgoingList) -> dict[str, Any]:
    option: dict[str, Any] = Message.decode(one.body()).options["outbox"]
    return option


@settings(deadline=None, max_examples=300)
@given(lists())
def test_the_spliced_body_decodes_to_the_message_of_the_general_path(one: OutgoingList) -> None:
    expected = one.message().copy(options={"redis_message_id": "an id"})
    assert Message.decode(one.body(redis_message_id="an id")) == expected


@pytest.mark.parametrize("kind", [OutgoingBatch, lambda *args: OutgoingPack(*args, size=3)])
def test_the_spliced_body_of_compact_json_is_what_dramatiq_writes(kind: Any) -> None:
    one = kind([make_claimed(delivery_id=pk) for pk in (1, 2)], make_template(Actor(broker_priority=3)))
    assert one.body(x="y") == one.message().copy(options={"x": "y"}).encode()


def test_another_encoder_encodes_the_whole_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "encode", lambda self: b"patched")
    assert pack_of(make_claimed()).body() == b"patched"


def test_a_pack_names_its_deliveries_so_that_no_older_worker_takes_it_for_a_batch() -> None:
    option = option_of(pack_of(make_claimed(delivery_id=5), make_claimed(delivery_id=3)))
    assert option == {"v": 1, "database": "default", "pack": [5, 3]}


def test_a_pack_says_how_often_each_was_tried() -> None:
    fresh, tried = make_claimed(attempts=1), make_claimed(attempts=4, redeliveries=1)
    option = option_of(pack_of(fresh, tried))
    assert (option["retries"], option["redelivered"]) == ([0, 2], 1)


def test_a_fresh_start_has_no_tries_behind_it() -> None:
    # An operator's retry sets the attempts to zero, and marks the delivery as redelivered.
    assert "retries" not in option_of(pack_of(make_claimed(attempts=1, redeliveries=1)))

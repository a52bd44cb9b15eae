"""Messages that carry several deliveries of a batch handler."""

from __future__ import annotations

import pytest
from dramatiq import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.claimed_delivery import ClaimedDelivery
from relay.messages.batch import OutgoingBatch
from relay.messages.template import Template
from tests.support.outgoing import make_claimed, make_template

from .test_messages import JSON, NAMES, OBJECTS, Actor, json_texts

HANDLER = 'a "quoted" handler'
PRIORITIES = st.sampled_from([{}, {"broker_priority": 5}])


@st.composite
def templates(draw: st.DrawFn) -> Template:
    actor = Actor(draw(NAMES), **draw(PRIORITIES))
    return make_template(actor, handler=HANDLER, database=draw(NAMES))


@st.composite
def rows(draw: st.DrawFn) -> list[ClaimedDelivery]:
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


@settings(deadline=None, max_examples=300)
@given(rows(), templates())
def test_a_body_built_as_text_decodes_to_the_message(rows: list[ClaimedDelivery], template: Template) -> None:
    batch = OutgoingBatch(rows, template)
    expected = batch.message().copy(options={"redis_message_id": "an id"})
    assert Message.decode(batch.body(redis_message_id="an id")) == expected


def test_a_body_built_of_compact_json_is_equal_to_the_body_of_dramatiq() -> None:
    rows = [make_claimed(delivery_id=pk) for pk in (1, 2)]
    batch = OutgoingBatch(rows, make_template(Actor(broker_priority=3)))
    assert batch.body(x="y") == batch.message().copy(options={"x": "y"}).encode()


def test_a_patched_message_encodes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "encode", lambda self: b"patched")
    assert OutgoingBatch([make_claimed()], make_template(Actor())).body() == b"patched"

"""The Dramatiq message of a claimed delivery."""

from __future__ import annotations

import json
import uuid
from hashlib import sha1
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.encoder import Encoder, JSONEncoder, PickleEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.messages.message_ids import hashed_uuid, message_id_for
from relay.messages.single import OutgoingMessage
from relay.messages.template import Kind
from tests.support.outgoing import make_claimed, make_template

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT | st.sampled_from(
    ['a "quoted" name', "back\\slash", "new\nline", "{}", "$&", "\x00", "\u2028", "😀"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)
CALLS = st.fixed_dictionaries(
    {"args": st.lists(JSON, max_size=3), "kwargs": OBJECTS}, optional={"options": OBJECTS}
)


class Actor:
    """A stand-in for an actor, which may have names that Dramatiq refuses."""

    def __init__(self, queue_name: str = "mail", **options: Any) -> None:
        self.queue_name = queue_name
        self.options = options


def make(
    kind: Kind = "event", actor: Actor | None = None, database: str = "default", **fields: Any
) -> OutgoingMessage:
    row = make_claimed(**fields)
    return OutgoingMessage(
        row, make_template(actor or Actor(), kind=kind, handler=row.handler, database=database)
    )


@st.composite
def json_texts(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> str:
    """Return JSON as databases write it: PostgreSQL uses spaces and no escapes."""
    separators = draw(st.sampled_from([(", ", ": "), (",", ":")]))
    return json.dumps(draw(values), ensure_ascii=draw(st.booleans()), separators=separators)


@st.composite
def outgoing(draw: st.DrawFn, *kinds: Kind) -> OutgoingMessage:
    kind: Kind = draw(st.sampled_from(kinds))
    return make(
        kind,
        Actor(draw(NAMES), **draw(st.sampled_from([{}, {"broker_priority": 5}]))),
        draw(NAMES),
        delivery_id=draw(st.integers(1, 2**63 - 1)),
        event_id=str(draw(st.uuids())),
        handler=draw(NAMES),
        key=draw(NAMES),
        topic=draw(NAMES),
        redeliveries=draw(st.integers(0, 3)),
        payload=draw(json_texts(CALLS if kind == "actor" else JSON)),
        headers=draw(json_texts(OBJECTS)),
    )


@settings(deadline=None, max_examples=300)
@given(outgoing("event", "actor"))
def test_a_body_built_as_text_decodes_to_the_message(one: OutgoingMessage) -> None:
    assert Message.decode(one.body()) == one.message()
    assert Message.decode(one.body(redis_message_id="an id")) == one.message().copy(
        options={"redis_message_id": "an id"}
    )


@settings(deadline=None, max_examples=30)
@given(outgoing("event"))
def test_a_body_built_of_compact_json_is_equal_to_the_body_of_dramatiq(one: OutgoingMessage) -> None:
    compact = {
        field: json.dumps(json.loads(getattr(one.claimed, field)), separators=(",", ":"))
        for field in ("payload", "headers")
    }
    same = OutgoingMessage(one.claimed._replace(**compact), one.template)
    assert same.body(redis_message_id="x") == same.message().copy(options={"redis_message_id": "x"}).encode()


@given(st.uuids(), TEXT)
def test_a_message_id_is_the_uuid5_of_event_and_handler(event_id: uuid.UUID, handler: str) -> None:
    assert message_id_for(str(event_id), handler) == str(uuid.uuid5(event_id, handler))


@given(st.binary(max_size=32))
def test_a_hash_becomes_the_text_of_a_uuid4(name: bytes) -> None:
    assert hashed_uuid(name, version=4) == str(uuid.UUID(bytes=sha1(name).digest()[:16], version=4))


def test_the_argument_of_a_message_is_the_envelope_of_its_event() -> None:
    one = make(payload='{"order_id": 7}', headers="{}", key="order-7")
    message = Message.decode(one.body())
    assert message.queue_name == "mail"
    assert message.actor_name == "shop.send_receipt"
    assert message.kwargs == {}
    assert message.options == {"outbox": {"v": 1, "delivery": 17, "database": "default"}}
    assert message.args == (
        {
            "id": one.claimed.event_id,
            "topic": "shop.order_paid",
            "key": "order-7",
            "payload": {"order_id": 7},
            "headers": {},
            "created_at": "2026-01-02T03:04:05.678901+00:00",
        },
    )


def test_a_redelivered_message_carries_the_number_of_earlier_messages() -> None:
    assert Message.decode(make(redeliveries=2).body()).options["outbox"]["earlier_messages"] == 2


def test_the_message_of_an_actor_has_the_arguments_and_options_of_the_call() -> None:
    one = make("actor", payload='{"args": [1, "b"], "kwargs": {"c": 3}, "options": {"max_retries": 4}}')
    message = Message.decode(one.body())
    assert (message.args, message.kwargs) == ((1, "b"), {"c": 3})
    assert message.options["max_retries"] == 4
    assert message.options["outbox"]["event"] == {
        "id": one.claimed.event_id,
        "topic": "shop.order_paid",
        "key": "order-7",
        "headers": {"request": "abc"},
        "created_at": "2026-01-02T03:04:05.678901+00:00",
    }


@pytest.mark.parametrize(
    "payload",
    [
        "[]",
        "null",
        "7",
        '{"args": []}',
        '{"kwargs": {}}',
        '{"args": {}, "kwargs": {}}',
        '{"args": [], "kwargs": []}',
        '{"args": [], "kwargs": {}, "options": []}',
        '{"args": [], "kwargs": {}, "queue_name": "other"}',
    ],
)
def test_a_malformed_call_is_refused(payload: str) -> None:
    one = make("actor", payload=payload)
    with pytest.raises(ValueError, match="payload"):
        one.body()
    with pytest.raises(ValueError, match="payload"):
        one.message()


def test_a_priority_comes_from_the_actor_or_the_call() -> None:
    assert make().priority is None
    assert make(actor=Actor(broker_priority=3)).priority == 3
    call = '{"args": [], "kwargs": {}, "options": {"broker_priority": 9}}'
    assert make("actor", payload=call).priority == 9
    assert Message.decode(make(actor=Actor(broker_priority=3)).body()).options["broker_priority"] == 3


def test_a_priority_that_cannot_be_encoded_fails_only_with_the_body() -> None:
    one = make(actor=Actor(broker_priority=object()))
    with pytest.raises(TypeError):
        one.body()


def test_dramatiq_encodes_a_priority_that_is_no_integer() -> None:
    assert Message.decode(make(actor=Actor(broker_priority=2.5)).body()).options["broker_priority"] == 2.5


class Shouting(JSONEncoder):
    """A subclass of the default encoder."""

    def encode(self, data: dict[str, Any]) -> bytes:
        return super().encode(data).upper()


@pytest.fixture(params=[PickleEncoder, Shouting])
def encoder(request: pytest.FixtureRequest) -> Any:
    usual = dramatiq.get_encoder()
    dramatiq.set_encoder(request.param())
    yield dramatiq.get_encoder()
    dramatiq.set_encoder(usual)


def test_another_encoder_encodes_the_whole_message(encoder: Encoder) -> None:
    one = make()
    assert one.body(x="y") == encoder.encode(one.message().copy(options={"x": "y"}).asdict())


def test_a_patched_message_encodes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "encode", lambda self: b"patched")
    assert make().body() == b"patched"


def test_a_message_goes_to_the_present_queue_of_its_actor() -> None:
    broker = StubBroker()
    actor = dramatiq.actor(lambda event: None, broker=broker, actor_name="a", queue_name="new")
    assert OutgoingMessage(make_claimed(queue="old"), make_template(actor)).message().queue_name == "new"

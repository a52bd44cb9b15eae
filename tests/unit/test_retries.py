"""The options that a retry stores for the next message, and the messages that carry them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from dramatiq import Message

from outbox.worker.retries import recorded_retry
from relay.messages.batch import OutgoingBatch
from relay.messages.single import OutgoingMessage
from tests.support.outgoing import make_claimed, make_template

from .test_messages import Actor

STORED = {"retries": 2, "memory": [1, {"a": "é"}], "message_timestamp": 5}


def stored_by(**options: Any) -> Any:
    """Return the options that a retry of a message with these options stores."""
    message: Message[Any] = Message("mail", "send", (), {}, options, "an id", 7)
    return json.loads(recorded_retry(message, timedelta()).options)


def test_a_retry_stores_all_options_but_those_of_one_message() -> None:
    stored = stored_by(outbox={"v": 1}, redis_message_id="x", eta=3, retries=1, memory=[1])
    assert stored == {"retries": 1, "memory": [1], "message_timestamp": 7}


@pytest.mark.parametrize("text", ["a\0b", "a\\\0b", "\\u0000", "\\\\u0000", "caf\u00e9 \U0001f600"])
def test_a_retry_stores_text_without_nul(text: str) -> None:
    assert stored_by(note=text)["note"] == text.replace("\0", "\\0")


def test_a_retry_stores_a_lone_surrogate_as_a_question_mark() -> None:
    assert stored_by(note="a\ud800")["note"] == "a?"


def test_a_retry_stores_the_end_of_a_long_traceback() -> None:
    assert stored_by(traceback="x" * 50_000 + "end")["traceback"].endswith("xend")
    assert len(stored_by(traceback="x" * 50_000)["traceback"]) == 20_000


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_a_retry_leaves_out_an_option_that_is_not_json(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert stored_by(retries=1, odd=value) == {"retries": 1, "message_timestamp": 7}
    assert "loses the message option 'odd'" in caplog.text


@pytest.mark.parametrize("kind", ["event", "actor"])
def test_the_message_of_a_retry_carries_the_stored_options(kind: Any) -> None:
    payload = '{"args":[1],"kwargs":{},"options":{"max_retries":9,"retries":0}}' if kind == "actor" else "1"
    row = make_claimed(payload=payload, message_options=json.dumps(STORED))
    outgoing = OutgoingMessage(row, make_template(Actor(), kind=kind))
    message = Message.decode(outgoing.body(extra="x"))
    assert message == outgoing.message().copy(options={"extra": "x"})
    assert message.message_timestamp == 5
    assert (message.options["retries"], message.options["memory"]) == (2, STORED["memory"])
    assert message.options["outbox"]["delivery"] == row.delivery_id
    assert message.options.get("max_retries") == (9 if kind == "actor" else None)


def test_the_priority_that_a_retry_has_stored_applies() -> None:
    row = make_claimed(message_options='{"broker_priority": 3}')
    assert OutgoingMessage(row, make_template(Actor(broker_priority=1))).priority == 3


def test_a_batch_carries_the_options_of_its_delivery_with_most_retries() -> None:
    options = ["", json.dumps({"retries": 2, "a": 1}), json.dumps({"retries": 1, "a": 2, "b": 3})]
    rows = [make_claimed(delivery_id=n, message_options=one) for n, one in enumerate(options)]
    message = Message.decode(OutgoingBatch(rows, make_template(Actor())).body())
    assert {name: message.options[name] for name in ("retries", "a", "b")} == {"retries": 2, "a": 1, "b": 3}
    assert message.options["outbox"]["deliveries"] == [0, 1, 2]

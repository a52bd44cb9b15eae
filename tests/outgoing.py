"""Factories for messages on their way to a broker."""

from __future__ import annotations

import os
import uuid
from typing import Any

import dramatiq
from dramatiq import Actor, Broker

from relay.claimed import Claimed
from relay.messages import Outgoing
from relay.splicing import Kind, Template


def unique_name() -> str:
    """Return a name for a queue or a namespace that no other test uses, with this session's prefix."""
    return f"{os.environ['OUTBOX_TEST_PREFIX']}{uuid.uuid4().hex[:8]}"


def make_actor(broker: Broker, **options: Any) -> Actor[..., Any]:
    """Return an actor that does nothing."""
    defaults = {"actor_name": "shop.send_receipt", "queue_name": unique_name()}
    return dramatiq.actor(lambda *args, **kwargs: None, broker=broker, **(defaults | options))


def make_claimed(**overrides: Any) -> Claimed:
    """Return a row of the claim statement."""
    fields = {
        "delivery_id": 17,
        "event_id": str(uuid.uuid4()),
        "handler": "shop.send_receipt",
        "queue": "mail",
        "key": "order-7",
        "attempts": 0,
        "redeliveries": 0,
        "topic": "shop.order_paid",
        # Compact and in ASCII, as Dramatiq's encoder writes it, so that bodies can be compared as bytes.
        "payload": '{"order_id":7,"lines":[1,2,{"price":"9.99"}],"note":"caf\\u00e9"}',
        "headers": '{"request":"abc"}',
        "created_at": "2026-01-02T03:04:05.678901+00:00",
        "dispatched_at_us": 1_767_323_045_700_000,
    }
    return Claimed(**(fields | overrides))


def make_template(
    actor: Any, *, kind: Kind = "event", handler: str = "shop.send_receipt", database: str = "default"
) -> Template:
    """Return what messages to `actor` have in common."""
    return Template(handler, actor=actor, kind=kind, database=database)


def make_outgoing(actor: Actor[..., Any], *, kind: Kind = "event", **overrides: Any) -> Outgoing:
    """Return a message to `actor`."""
    row = make_claimed(**({"handler": actor.actor_name, "queue": actor.queue_name} | overrides))
    return Outgoing(row, make_template(actor, kind=kind, handler=row.handler))


def make_batch(actor: Actor[..., Any], count: int, **overrides: Any) -> list[Outgoing]:
    """Return messages to `actor` with deliveries counted from 1."""
    return [make_outgoing(actor, **({"delivery_id": n} | overrides)) for n in range(1, count + 1)]


def malformed(actor: Actor[..., Any], **overrides: Any) -> Outgoing:
    """Return a message that cannot be encoded."""
    return make_outgoing(actor, kind="actor", payload='{"args": 1}', **overrides)


def mixed_batch(broker: Broker) -> list[Outgoing]:
    """Return messages of both kinds to two queues."""
    events = make_actor(broker, queue_name="events")
    mail = make_actor(broker, queue_name="mail", actor_name="send")
    call = '{"args":[1,"b"],"kwargs":{"c":[]},"options":{"max_retries":3}}'
    return [
        *make_batch(events, 3),
        make_outgoing(mail, kind="actor", payload=call),
        make_outgoing(mail, kind="actor", payload='{"args":[],"kwargs":{}}', redeliveries=2),
        *make_batch(events, 2, key="caf\u00e9 \U0001f600", topic='"quoted"\\'),
    ]

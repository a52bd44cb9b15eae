"""Claimed deliveries and outgoing messages, without a database."""

from __future__ import annotations

import uuid
from typing import Any

import dramatiq
from dramatiq import Actor, Broker

from relay.claimed_delivery import ClaimedDelivery
from relay.messages.single import OutgoingMessage
from relay.messages.template import Kind, Template

from .names import unique_name


def make_actor(broker: Broker, **options: Any) -> Actor[..., Any]:
    """Return an actor that does nothing."""
    defaults = {"actor_name": "shop.send_receipt", "queue_name": unique_name()}
    return dramatiq.actor(lambda *args, **kwargs: None, broker=broker, **(defaults | options))


def make_claimed(**overrides: Any) -> ClaimedDelivery:
    """Return a claimed delivery."""
    fields = {
        "delivery_id": 17,
        "event_id": str(uuid.uuid4()),
        "handler": "shop.send_receipt",
        "queue": "mail",
        "key": "order-7",
        "attempts": 0,
        "redeliveries": 0,
        "resends": 0,
        "topic": "shop.order_paid",
        # Compact ASCII, as Dramatiq's encoder writes it, so that tests can compare bodies as bytes.
        "payload": '{"order_id":7,"lines":[1,2,{"price":"9.99"}],"note":"caf\\u00e9"}',
        "headers": '{"request":"abc"}',
        "created_at": "2026-01-02T03:04:05.678901+00:00",
        "dispatched_at_us": 1_767_323_045_700_000,
    }
    return ClaimedDelivery(**(fields | overrides))


def make_template(
    actor: Any, *, kind: Kind = "event", handler: str = "shop.send_receipt", database: str = "default"
) -> Template:
    """Return the template of messages to `actor`."""
    return Template(handler, actor=actor, kind=kind, database=database)


def make_outgoing(actor: Actor[..., Any], *, kind: Kind = "event", **overrides: Any) -> OutgoingMessage:
    """Return a message to `actor`."""
    row = make_claimed(**({"handler": actor.actor_name, "queue": actor.queue_name} | overrides))
    return OutgoingMessage(row, make_template(actor, kind=kind, handler=row.handler))


def make_batch(actor: Actor[..., Any], count: int, **overrides: Any) -> list[OutgoingMessage]:
    """Return messages to `actor` whose deliveries have the ids 1, 2, …"""
    return [make_outgoing(actor, **({"delivery_id": n} | overrides)) for n in range(1, count + 1)]


def malformed(actor: Actor[..., Any], **overrides: Any) -> OutgoingMessage:
    """Return a message that cannot be encoded."""
    return make_outgoing(actor, kind="actor", payload='{"args": 1}', **overrides)


def mixed_batch(broker: Broker) -> list[OutgoingMessage]:
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

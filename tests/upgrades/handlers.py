"""One handler of each kind, and publishes for all of them: recorded, and run again by later releases.

The recordings contain the names, topics and payloads, so a change here needs new recordings.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import dramatiq
from django.db import transaction
from django.dispatch import Signal

import outbox
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from tests.testapp.models import Effect, Order

QUEUE = "upgrades"
PAST = datetime(2026, 1, 1, tzinfo=UTC)

# The events of one message.
BATCH_SIZE = 2

upgraded = Signal()


class Colour(enum.Enum):
    """A class whose path is stored in typed JSON."""

    RED = "red"


@contextmanager
def declared() -> Iterator[None]:
    """Register the handlers while the block runs."""
    before = set(registry.handlers)
    _declare()
    try:
        yield
    finally:
        for name in set(registry.handlers) - before:
            unsubscribe(name)
            registry.remove(name)


def publish_all() -> None:
    """Publish in each way that writes another kind of row, each in its own transaction."""
    for publish in (_events, _calls, _sends, _batch, _ordered):
        with transaction.atomic():
            publish()


def _events() -> None:
    outbox.publish("upgrade.event", {"text": "naïve", "n": [1, None]}, key="one", headers={"tenant": "a"})
    outbox.publish("upgrade.event", "delayed", eta=PAST)
    outbox.publish("upgrade.event", "perishable", expires=timedelta(days=365), dedup_key="once")
    outbox.publish("upgrade.failing", None, delay=timedelta(milliseconds=1))
    outbox.publish_many([{"topic": "upgrade.event", "payload": n, "key": f"many-{n}"} for n in range(3)])
    outbox.publish("upgrade.nobody")


def _calls() -> None:
    actor = registry.get("upgrade_call").actor
    actor.send(7, width=2)
    actor.send_with_options(args=(8,), max_retries=2)


def _sends() -> None:
    upgraded.send(
        sender=Order,
        order=Order(pk=41, status="paid", total=Decimal("9.90")),
        at=PAST,
        token=UUID(int=1),
        amounts={"net": Decimal("1.50"), "wait": timedelta(minutes=1)},
        colour=Colour.RED,
    )


def _batch() -> None:
    for n in range(BATCH_SIZE):
        outbox.publish("upgrade.batch", {"n": n})


def _ordered() -> None:
    for n in range(3):
        outbox.publish("upgrade.ordered", n, key="key-1")


def _note(handler: str, key: str, **detail: Any) -> None:
    Effect.objects.create(handler=handler, key=key, detail=detail)


def _declare() -> None:
    options: dict[str, Any] = {"queue_name": QUEUE, "max_retries": 0}

    @outbox.handler("upgrade.event", name="upgrade_event", **options)
    def upgrade_event(event: outbox.ReceivedEvent) -> None:
        tenant = event.headers.get("tenant")
        _note("upgrade_event", event.key, topic=event.topic, payload=event.payload, tenant=tenant)

    @outbox.handler("upgrade.failing", name="upgrade_failing", **options)
    def upgrade_failing(event: outbox.ReceivedEvent) -> None:
        raise ValueError("fails in every run")

    @outbox.handler("upgrade.batch", name="upgrade_batch", batch_size=BATCH_SIZE, batch_wait=0.001, **options)
    def upgrade_batch(events: list[outbox.ReceivedEvent]) -> None:
        _note("upgrade_batch", "", payloads=[event.payload for event in events])

    @outbox.handler("upgrade.ordered", name="upgrade_ordered", ordered=True, transactional=True, **options)
    def upgrade_ordered(event: outbox.ReceivedEvent) -> None:
        _note("upgrade_ordered", event.key, payload=event.payload)

    @dramatiq.actor(
        actor_class=outbox.TransactionalActor, actor_name="upgrade_call", queue_name=QUEUE, max_retries=0
    )
    def upgrade_call(number: int, *, width: int = 1) -> None:
        event = outbox.current_event()
        _note("upgrade_call", str(number), width=width, topic=event.topic if event else None)

    @outbox.receiver(upgraded, name="upgrade_receiver", snapshot=True, **options)
    def upgrade_receiver(sender: Any, signal: Any, **arguments: Any) -> None:
        order = arguments.pop("order")
        arguments |= {"order": [order.pk, order.status, order.total], "sent": signal is upgraded}
        _note("upgrade_receiver", sender.__name__, **{name: repr(arguments[name]) for name in arguments})

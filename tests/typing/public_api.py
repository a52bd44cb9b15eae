"""The public interface as a user's type checker sees it; mypy checks this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import dramatiq
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

import outbox
from outbox import (
    EventData,
    OutboxSignal,
    ReceivedEvent,
    RecordedSend,
    TransactionalActor,
    apublish,
    context,
    current_event,
    handler,
    monitor,
    monitor_signal,
    only_for_models,
    only_in_environment,
    only_when_field_changed,
    publish,
    publish_many,
    receiver,
    send_background,
    signal_condition,
)
from outbox.actors import OutboxActor
from outbox.conditions import Condition
from outbox.models import Event
from outbox.stats import HandlerSummary, SlowHandler, get_slow_handlers, get_stats
from tests.testapp.models import Order

order_paid = Signal()


# ---------------------------------------------------------------- publishing


def publishing() -> None:
    event = publish("shop.order_paid", {"order_id": 7}, key="order-7", delay=timedelta(minutes=5))
    assert_type(event, Event)
    assert_type(event.id, UUID)
    assert_type(event.topic, str)
    publish("shop.order_paid", eta=datetime.now(UTC), headers={"a": 1}, using="default")
    publish("shop.order_paid", expires=timedelta(hours=1), dedup_key="pay-7")
    assert_type(event.cancel(), int)
    assert_type(publish_many([EventData("shop.order_paid"), {"topic": "shop.order_sent"}]), list[Event])

    publish(7)  # type: ignore[arg-type]
    publish("shop.order_paid", delay=5)  # type: ignore[arg-type]
    publish("shop.order_paid", None, "order-7")  # type: ignore[call-arg]
    publish("shop.order_paid", keys="order-7")  # type: ignore[call-arg]


async def publishing_async() -> None:
    assert_type(await apublish("shop.order_paid", {"order_id": 7}), Event)


# ---------------------------------------------------------------- handlers


@handler("shop.order_paid", "shop.order_sent", queue_name="mail", max_retries=8)
def send_receipt(event: ReceivedEvent) -> None:
    assert_type(event.id, UUID)
    assert_type(event.key, str)
    assert_type(event.headers, Mapping[str, Any])
    assert_type(event.created_at, datetime | None)
    assert_type(event.correlation_id, str)


@handler("shop.*", batch_size=100, batch_wait=timedelta(seconds=5))
def index(events: list[ReceivedEvent]) -> None: ...


@handler("shop.*", pack=50, transactional=True)
def count(event: ReceivedEvent) -> None: ...


@handler("shop.*", ordered=True, on_failure="skip")
async def mirror(event: ReceivedEvent) -> None: ...


@handler("shop.*", transactional=True)
def charge(event: ReceivedEvent) -> None: ...


def handlers() -> None:
    assert_type(send_receipt, OutboxActor)
    assert_type(send_receipt.actor_name, str)
    as_any_actor: dramatiq.Actor[..., Any] = index
    as_any_actor.send()
    assert_type(current_event(), ReceivedEvent | None)

    handler("shop.*", ordered="yes")  # type: ignore[arg-type]
    handler("shop.*", on_failure="stop")  # type: ignore[arg-type]


# ---------------------------------------------------------------- receivers and signals


@receiver(post_save, sender=Order, when=only_when_field_changed("status"), queue_name="mail")
def mail_status(sender: type[Order], instance: Order, created: bool, **kwargs: Any) -> None: ...


@receiver([post_save, post_delete], sender="testapp.Order", missing="pass", snapshot=True, pack=20)
async def mirror_order(sender: type[Order], instance: Order | None, **kwargs: Any) -> None: ...


@receiver(order_paid, when=lambda amount: amount > 5, batch_size=10)
def book(sends: list[dict[str, Any]]) -> None: ...


@only_when_field_changed("status", model="testapp.Order")
def plain(sender: type[Order], instance: Order, **kwargs: Any) -> int:
    return 7


status_changed = OutboxSignal("shop.order_status_changed")


@status_changed.handler(queue_name="mail")
def mail_change(sender: Any, instance: Order, **kwargs: Any) -> None: ...


def signals() -> None:
    assert_type(mail_status, OutboxActor)
    assert_type(mail_change, OutboxActor)
    # A condition changes nothing about the receiver that it decorates.
    assert_type(plain(Order, Order()), int)
    conditions = only_for_models(Order, "testapp.Order") & ~only_in_environment("test")
    assert_type(conditions | signal_condition(lambda created: created), Condition)
    assert_type(status_changed.recent(limit=3), list[RecordedSend])
    assert_type(status_changed.recent()[0].arguments, dict[str, Any])
    assert_type(send_background(order_paid, sender=Order, amount=5), Event)

    receiver(post_save, missing="ignore")  # type: ignore[arg-type]
    receiver("post_save")  # type: ignore[arg-type]


# ---------------------------------------------------------------- actors


@dramatiq.actor(actor_class=TransactionalActor, queue_name="images")
def resize(photo_id: int, *, width: int = 100) -> None: ...


def actors() -> None:
    resize.send(7)
    resize.send_with_options(args=(7,), delay=60_000)


# ---------------------------------------------------------------- the rest


@monitor
def reprice(order: Order, *, factor: float) -> float:
    return factor


@monitor(name="shop.search")
async def search(words: str) -> list[int]:
    return [len(words)]


def others() -> None:
    assert_type(reprice(Order(), factor=2.0), float)
    found: Awaitable[list[int]] = search("pen")
    del found
    assert_type(monitor_signal(post_save), int)
    with context(tenant="acme") as fields:
        assert_type(fields, Mapping[str, Any])
    assert_type(get_stats(since=timedelta(hours=1)), list[HandlerSummary])
    assert_type(get_slow_handlers(0.1), list[SlowHandler])
    assert_type(outbox.__version__, str)

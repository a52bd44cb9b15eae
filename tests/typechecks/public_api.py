"""The public interface as a user's type checker sees it: mypy checks this file, and nothing runs it.

pyright accepts it too. A line with `# type: ignore[…]` must be an error, because unused ignores are errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import dramatiq
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from sentry_sdk.integrations import Integration

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
from outbox.conditions import Condition
from outbox.contrib.opentelemetry import instrument, uninstrument
from outbox.contrib.sentry import OutboxIntegration
from outbox.models import Event
from outbox.operations.stats import HandlerSummary, SlowHandler, get_slow_handlers, get_stats
from outbox.worker.actor import OutboxActor
from tests.testapp.models import Order

order_paid = Signal()


# ---------------------------------------------------------------- publishing


def publishing() -> None:
    event = publish("shop.order_paid", {"order_id": 7}, key="order-7", delay=timedelta(minutes=5))
    assert_type(event, Event)
    # Only mypy's plugin for Django knows the types of fields.
    event_id: UUID = event.id
    topic: str = event.topic
    del event_id, topic
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
def index(events: list[ReceivedEvent]) -> int:
    return len(events)


@handler("shop.*", ordered=True, transactional=True)
def count(event: ReceivedEvent) -> None: ...


@handler("shop.*", ordered=True, on_failure="skip")
async def mirror(event: ReceivedEvent) -> str:
    return event.key


@handler("shop.*", transactional=True, former_names=["shop.handlers.bill"])
def charge(event: ReceivedEvent, *, retry: bool = False) -> None: ...


untyped = handler("shop.*")(lambda event: event)


def send(actor: dramatiq.Actor[..., Any]) -> None:
    actor.send()


def handlers(event: ReceivedEvent) -> None:
    assert_type(send_receipt.actor_name, str)
    send(index)
    as_outbox_actor: OutboxActor[[list[ReceivedEvent]], int] = index
    as_outbox_actor.fn([event])
    assert_type(current_event(), ReceivedEvent | None)

    # A direct call runs the function in the caller's process.
    send_receipt(event)
    send_receipt(event=event)
    charge(event, retry=True)
    assert_type(index([event]), int)
    assert_type(index.message([event]), dramatiq.Message[int])
    # Dramatiq runs async functions to their end, so a call returns the result and not an awaitable.
    assert_type(mirror(event), str)
    assert_type(mirror.send(event), dramatiq.Message[str])
    untyped(event)

    send_receipt()  # type: ignore[call-arg]
    send_receipt("event")  # type: ignore[arg-type]
    send_receipt(event, 7)  # type: ignore[call-arg]
    send_receipt.send("event")  # type: ignore[arg-type]
    send_receipt.fn("event")  # type: ignore[arg-type]
    index(event)  # type: ignore[arg-type]
    index.send([7])  # type: ignore[list-item]
    mirror(7)  # type: ignore[arg-type]
    charge(event, True)  # type: ignore[call-arg]
    charge(event, retry="yes")  # type: ignore[arg-type]

    handler("shop.*", ordered="yes")  # type: ignore[arg-type]
    handler("shop.*", on_failure="stop")  # type: ignore[arg-type]
    handler("shop.*", batch_size="ten")  # type: ignore[arg-type]
    handler("shop.*", batch_wait="5s")  # type: ignore[arg-type]
    handler("shop.*", former_names=7)  # type: ignore[arg-type]
    handler("shop.*")(7)  # type: ignore[call-overload]


# ---------------------------------------------------------------- receivers and signals


@receiver(post_save, sender=Order, when=only_when_field_changed("status"), queue_name="mail")
def mail_status(sender: type[Order], instance: Order, created: bool, **kwargs: Any) -> None: ...


@receiver([post_save, post_delete], sender="testapp.Order", missing="pass", snapshot=True)
async def mirror_order(sender: type[Order], instance: Order | None, **kwargs: Any) -> None: ...


@receiver(order_paid, when=lambda amount: amount > 5, batch_size=10, former_names=("shop.book",))
def book(sends: list[dict[str, Any]]) -> None: ...


@receiver(post_save, sender=Order)
@receiver(post_delete, sender=Order)
def reindex(instance: Order, **kwargs: Any) -> int:
    return 7


@receiver(post_save, sender=Order)
@only_when_field_changed("status")
def log_status(instance: Order, changes: dict[str, Any], **kwargs: Any) -> None: ...


@only_when_field_changed("status", model="testapp.Order")
def plain(sender: type[Order], instance: Order, **kwargs: Any) -> int:
    return 7


status_changed = OutboxSignal("shop.order_status_changed")


@status_changed.handler(queue_name="mail", ordered=True)
def mail_change(sender: Any, instance: Order, **kwargs: Any) -> None: ...


@outbox.bulk_updated.connect
def count_rows(sender: Any, instances: list[Order], **kwargs: Any) -> None: ...


def receivers() -> None:
    assert_type(mail_status.actor_name, str)
    # A second @receiver returns the same actor; a condition keeps the type of the receiver.
    assert_type(reindex(instance=Order()), int)
    assert_type(plain(Order, Order()), int)
    mail_status(Order, Order(), True)
    mail_status(sender=Order, instance=Order(), created=True, raw=False)
    assert_type(mirror_order(Order, None), None)
    book([{"amount": 7}])
    log_status(Order(), changes={})
    mail_change(None, Order(), new="paid")

    mail_status(Order, Order())  # type: ignore[call-arg]
    mail_status(Order, Order(), "yes")  # type: ignore[arg-type]
    mail_status.send(Order, 7, True)  # type: ignore[arg-type]
    mirror_order(Order, 7)  # type: ignore[arg-type]
    book("sends")  # type: ignore[arg-type]
    reindex(instance=7)  # type: ignore[arg-type]
    log_status(Order())  # type: ignore[call-arg]
    mail_change(None, 7)  # type: ignore[arg-type]

    receiver(post_save, missing="ignore")  # type: ignore[arg-type]
    receiver("post_save")  # type: ignore[arg-type]
    receiver(post_save, ordered="yes")  # type: ignore[arg-type]
    receiver(post_save)(7)  # type: ignore[call-overload]
    status_changed.handler(missing="ignore")  # type: ignore[arg-type]
    status_changed.handler(ordered="yes")  # type: ignore[arg-type]
    status_changed.handler(post_save)  # type: ignore[call-arg]


def signals() -> None:
    conditions = only_for_models(Order, "testapp.Order") & ~only_in_environment("test")
    assert_type(conditions | signal_condition(lambda created: created), Condition)
    assert_type(status_changed.recent(limit=3), list[RecordedSend])
    assert_type(status_changed.recent()[0].arguments, dict[str, Any])
    assert_type(send_background(order_paid, sender=Order, amount=5), Event)


# ---------------------------------------------------------------- actors


@dramatiq.actor(actor_class=TransactionalActor, queue_name="images", former_names=["shop.scale"])
def resize(photo_id: int, *, width: int = 100) -> str:
    return f"{photo_id}-{width}"


def crop(photo_id: int) -> str:
    return str(photo_id)


def actors(broker: dramatiq.Broker) -> None:
    assert_type(resize.send(7), dramatiq.Message[str])
    resize.send(7, width=50)
    resize.send_with_options(args=(7,), delay=60_000)
    assert_type(resize(7), str)

    resize.send()  # type: ignore[call-arg]
    resize.send("7")  # type: ignore[arg-type]
    resize.send(7, 50)  # type: ignore[call-arg]
    resize.send(7, height=50)  # type: ignore[call-arg]
    resize("7")  # type: ignore[arg-type]

    made = TransactionalActor(
        crop, broker=broker, actor_name="crop", queue_name="images", priority=0, options={}
    )
    made.send(7)
    assert_type(made(7), str)
    assert_type(made.send_with_options(args=(7,)), dramatiq.Message[str])
    made.send_with_options(args=(7,), delay=timedelta(minutes=1), using="default")

    made.send("7")  # type: ignore[arg-type]
    made.send_with_options(args=(7,), delay="soon")  # type: ignore[arg-type]


# ---------------------------------------------------------------- monitoring, context, statistics


@monitor
def reprice(order: Order, *, factor: float) -> float:
    return factor


@monitor(name="shop.search")
async def search(words: str) -> list[int]:
    return [len(words)]


def traces(tracers: TracerProvider, meters: MeterProvider) -> None:
    instrument(process="linked", tracer_provider=tracers, meter_provider=meters)
    uninstrument()
    integrations: list[Integration] = [OutboxIntegration(site_url="https://shop.example")]
    del integrations

    instrument(process="parent")  # type: ignore[arg-type]
    instrument("linked")  # type: ignore[call-arg]
    OutboxIntegration("https://shop.example")  # type: ignore[call-arg]


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

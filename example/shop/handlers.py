"""The handlers of placed and moved orders; they run in the background, after the commit.

Delivery is at least once: if a worker is killed, its deliveries run again. Each handler therefore writes its
effect with the event's id, and a second run changes nothing.
"""

import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.signals import post_save

from outbox import (
    ReceivedEvent,
    current_event,
    handler,
    only_in_environment,
    only_when_field_changed,
    receiver,
    signal_condition,
)

from . import queues
from .models import AnalyticsEntry, HistoryEntry, Mail, Order, OrderStatus, Product, StockMovement
from .signals import order_status_changed

SUBJECTS = {
    OrderStatus.PENDING: "We have your order",
    OrderStatus.PAID: "Thank you for your payment",
    OrderStatus.SHIPPED: "Your order is on its way",
    OrderStatus.CANCELLED: "Your order was cancelled",
}
LARGE = Decimal(100)
LARGE_SUBJECT = "To the sales department: a large order"


class AnalyticsAway(Exception):
    """The simulated analytics service did not answer."""


@signal_condition
def is_large(instance: Order, created: bool) -> bool:
    """Return whether the order is new and large."""
    return created and instance.total >= LARGE


@signal_condition
def is_cancelled(new: OrderStatus) -> bool:
    """Return whether the move is a cancellation."""
    return new == OrderStatus.CANCELLED


# ---------------------------------------------------------------- mail


@handler("shop.order_placed", queue_name=queues.MAIL, max_retries=8)
def mail_confirmation(event: ReceivedEvent) -> None:
    """Confirm the order to the customer."""
    _mail(event.payload["order_id"], SUBJECTS[OrderStatus.PENDING])


@order_status_changed.handler(queue_name=queues.MAIL, max_retries=8)
def mail_status(sender: type[Order], order: Order, new: OrderStatus, **kwargs: Any) -> None:
    """Notify the customer of the new status."""
    _mail(order.pk, SUBJECTS[new])


@receiver(post_save, sender=Order, when=is_large & only_in_environment("production"), queue_name=queues.MAIL)
def mail_sales(sender: type[Order], instance: Order, **kwargs: Any) -> None:
    """Notify the sales department of a large order, in production only."""
    _mail(instance.pk, LARGE_SUBJECT)


def _mail(order_id: int, subject: str) -> None:
    Mail.objects.get_or_create(event_id=_event().id, defaults={"order_id": order_id, "subject": subject})


# ---------------------------------------------------------------- stock


@handler("shop.order_placed", queue_name=queues.STOCK)
def take_from_stock(event: ReceivedEvent) -> None:
    """Take the ordered products from stock."""
    lines = {line["product_id"]: -line["quantity"] for line in event.payload["lines"]}
    _move_stock(event.payload["order_id"], lines)


@receiver(order_status_changed, sender=Order, when=is_cancelled, queue_name=queues.STOCK)
def put_back_in_stock(sender: type[Order], order: Order, **kwargs: Any) -> None:
    """Return the products of a cancelled order to stock."""
    _move_stock(order.pk, dict(order.lines.values_list("product_id", "quantity")))


def _move_stock(order_id: int, quantities: Mapping[int, int]) -> None:
    # One transaction, so that a movement and its change of stock are written together.
    with transaction.atomic():
        # Sorted, because two workers that lock the same products in different orders would deadlock.
        for product_id, quantity in sorted(quantities.items()):
            _, is_new = StockMovement.objects.get_or_create(
                event_id=_event().id,
                product_id=product_id,
                defaults={"order_id": order_id, "quantity": quantity},
            )
            if is_new:
                Product.silent.filter(pk=product_id).update(stock=F("stock") + quantity)


# ---------------------------------------------------------------- office


@handler(
    "shop.*",
    queue_name=queues.ANALYTICS,
    batch_size=50,
    batch_wait=settings.SHOP_ANALYTICS_WAIT,
    max_retries=20,
    min_backoff=100,
    max_backoff=2_000,
)
def count_in_analytics(events: Sequence[ReceivedEvent]) -> None:
    """Report a batch to a service that fails one call in five; Dramatiq retries."""
    if random.random() < settings.SHOP_ANALYTICS_FAILURE_RATE:
        raise AnalyticsAway("The analytics service did not answer; this is part of the example.")
    AnalyticsEntry.objects.bulk_create(
        (
            AnalyticsEntry(event_id=event.id, order_id=Order.pk_of(event.key), topic=event.topic)
            for event in events
        ),
        # Rows of an earlier attempt stay unchanged.
        ignore_conflicts=True,
    )


@receiver(post_save, sender=Order, when=only_when_field_changed("status"), queue_name=queues.OFFICE)
def write_history(
    sender: type[Order], instance: Order, created: bool, changes: dict[str, Any], **kwargs: Any
) -> None:
    """Record each change of status: a signal receiver, made durable by importing `receiver` from outbox."""
    old, new = changes["status"]
    HistoryEntry.objects.get_or_create(
        event_id=_event().id,
        defaults={"order_id": instance.pk, "note": "created" if created else f"{old} → {new}"},
    )


def _event() -> ReceivedEvent:
    event = current_event()
    assert event is not None, "a handler runs for an event"
    return event

"""What the shop can do. Each function publishes its events in the transaction that makes them true."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.utils import timezone

from example.shop.models import Customer, Order, OrderLine, OrderStatus, Product
from example.shop.signals import order_status_changed, report_requested
from example.shop.tasks import write_invoice
from outbox import publish, send_background

CENT = Decimal("0.01")


class InvalidMove(Exception):
    """An order cannot go from its status to the one asked for."""


class RolledBackOnPurpose(Exception):
    """Raised inside a transaction to show what a roll-back leaves behind: nothing."""


def place_order(customer: Customer, quantities: Mapping[Product, int]) -> Order:
    """Write an order, its event and its invoice's task: all of them with the commit, or none."""
    total = sum((product.price * quantity for product, quantity in quantities.items()), Decimal(0))
    with transaction.atomic():
        order = Order.objects.create(customer=customer, total=total)
        OrderLine.objects.bulk_create(
            OrderLine(order=order, product=product, quantity=quantity, price=product.price)
            for product, quantity in quantities.items()
        )
        publish("shop.order_placed", order_payload(order, quantities), key=order.key)
        write_invoice.send(order.pk)
    return order


def place_and_roll_back(customer: Customer, quantities: Mapping[Product, int]) -> int:
    """Place an order, publish its events, then fail; return the number the order would have had."""
    number = 0
    with suppress(RolledBackOnPurpose), transaction.atomic():
        number = place_order(customer, quantities).pk
        raise RolledBackOnPurpose
    return number


def move_order(order_id: int, status: OrderStatus) -> Order:
    """Move an order on and send `order_status_changed`.

    Raises:
        InvalidMove: the order is not in a status from which it can go there.
    """
    with transaction.atomic():
        # Locked, so that of two people who press different buttons at once, one is told that it is too late.
        order = Order.objects.select_for_update().get(pk=order_id)
        if status not in order.next_statuses:
            raise InvalidMove(f"{order} is {order.status} and cannot become {status}.")
        old, order.status = OrderStatus(order.status), status
        order.save(update_fields=["status"])
        order_status_changed.send(
            sender=Order, order=order, old=old, new=status, total=order.total, day=timezone.localdate()
        )
    return order


def change_prices(factor: Decimal) -> int:
    """Multiply all prices and return how many there are; one `bulk_updated` tells of it."""
    with transaction.atomic():
        # Orders go on meanwhile: their lines refer to the products' keys, which stay.
        products = list(Product.objects.select_for_update(no_key=True).order_by("pk"))
        for product in products:
            product.price = (product.price * factor).quantize(CENT)
        return Product.objects.bulk_update(products, ["price"])


def request_report(day: date) -> None:
    """Have all that listens to `report_requested` called in a worker."""
    with transaction.atomic():
        send_background(report_requested, day=day)


def order_payload(order: Order, quantities: Mapping[Product, int]) -> dict[str, Any]:
    """Return what the event says about an order: the facts of this moment, whatever becomes of it later."""
    return {
        "order_id": order.pk,
        "customer_id": order.customer_id,
        "total": str(order.total),
        "lines": [
            {"product_id": product.pk, "quantity": quantity} for product, quantity in quantities.items()
        ],
    }

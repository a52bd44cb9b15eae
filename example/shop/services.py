"""The operations of the shop. Each publishes its events in the transaction that changes the rows."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.utils import timezone

from outbox import publish, send_background

from .models import Customer, Order, OrderLine, OrderStatus, Product
from .signals import order_status_changed, report_requested
from .tasks import write_invoice

CENT = Decimal("0.01")


class InvalidMove(Exception):
    """An order cannot move from its status to the requested one."""


class RolledBackOnPurpose(Exception):
    """Raised inside a transaction to roll it back."""


def place_order(customer: Customer, quantities: Mapping[Product, int]) -> Order:
    """Write an order, its event and the task for its invoice in one transaction."""
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
    """Place an order, publish its events, then roll back; return the id of the lost order."""
    number = 0
    with suppress(RolledBackOnPurpose), transaction.atomic():
        number = place_order(customer, quantities).pk
        raise RolledBackOnPurpose
    return number


def move_order(order_id: int, status: OrderStatus) -> Order:
    """Move an order on and send `order_status_changed`.

    Raises:
        InvalidMove: if the order cannot move from its status to `status`.
    """
    with transaction.atomic():
        # Locked, so that the second of two simultaneous moves sees the first and is refused.
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
    """Multiply all prices with one `bulk_updated`, and return the number of products."""
    with transaction.atomic():
        # `no_key` lets orders continue: their lines need only the keys of the products.
        products = list(Product.objects.select_for_update(no_key=True).order_by("pk"))
        for product in products:
            product.price = (product.price * factor).quantize(CENT)
        return Product.objects.bulk_update(products, ["price"])


def request_report(day: date) -> None:
    """Have a worker call the receivers of `report_requested`."""
    with transaction.atomic():
        send_background(report_requested, day=day)


def order_payload(order: Order, quantities: Mapping[Product, int]) -> dict[str, Any]:
    """Return the payload of a placed order: its values at this moment."""
    return {
        "order_id": order.pk,
        "customer_id": order.customer_id,
        "total": str(order.total),
        "lines": [
            {"product_id": product.pk, "quantity": quantity} for product, quantity in quantities.items()
        ],
    }

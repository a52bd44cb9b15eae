"""Ordinary receivers: they run where their signal is sent, and `@monitor` times them."""

from datetime import date
from decimal import Decimal
from typing import Any

from django.db.models import F, Sum
from django.dispatch import receiver

from outbox import monitor

from .models import Customer, DailyReport, Order, OrderStatus, Product
from .signals import order_status_changed, report_requested

SOLD = (OrderStatus.PAID, OrderStatus.SHIPPED)


@receiver(order_status_changed, sender=Order)
@monitor
def add_up_spending(
    sender: type[Order], order: Order, old: OrderStatus, new: OrderStatus, total: Decimal, **kwargs: Any
) -> None:
    """Update the customer's spending in the transaction that moves the order."""
    sign = (new in SOLD) - (old in SOLD)
    if sign:
        Customer.objects.filter(pk=order.customer_id).update(spent=F("spent") + sign * total)


@receiver(report_requested)
@monitor
def report_orders(sender: Any, day: date, **kwargs: Any) -> None:
    """Write the number of orders up to the end of a day, and their turnover."""
    orders = Order.objects.filter(created_at__date__lte=day)
    turnover = orders.filter(status__in=SOLD).aggregate(sum=Sum("total", default=Decimal(0)))["sum"]
    DailyReport.objects.update_or_create(day=day, defaults={"orders": orders.count(), "turnover": turnover})


@receiver(report_requested)
@monitor
def report_back_orders(sender: Any, day: date, **kwargs: Any) -> None:
    """Write the number of back-ordered products."""
    short = Product.objects.filter(stock__lt=0).count()
    DailyReport.objects.update_or_create(day=day, defaults={"back_ordered": short})

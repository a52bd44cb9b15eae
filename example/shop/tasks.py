"""An actor and a task of Django's task framework: both run after the commit of their caller."""

from datetime import date
from decimal import Decimal

import django
import dramatiq
from django.db.models import Sum

from outbox import TransactionalActor

from . import queues
from .models import Invoice, Order

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@dramatiq.actor(actor_class=TransactionalActor, queue_name=queues.OFFICE)
def write_invoice(order_id: int) -> None:
    """Write the order's invoice; a second run changes nothing."""
    Invoice.objects.get_or_create(order_id=order_id, defaults={"number": f"INV-{order_id:06d}"})


@task(queue_name=queues.OFFICE)
def close_day(day: str) -> dict[str, int | str]:
    """Return the number and the total of a day's orders, which the result of the task keeps."""
    orders = Order.objects.filter(created_at__date=date.fromisoformat(day))
    total = orders.aggregate(total=Sum("total"))["total"] or Decimal(0)
    return {"orders": orders.count(), "total": f"{total:.2f}"}

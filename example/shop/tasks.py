"""A plain Dramatiq actor that takes part in transactions: its messages leave with the commit."""

import dramatiq

from example.shop import queues
from example.shop.models import Invoice
from outbox import TransactionalActor


@dramatiq.actor(actor_class=TransactionalActor, queue_name=queues.OFFICE)
def write_invoice(order_id: int) -> None:
    """Write the order's invoice; a second call finds it written."""
    Invoice.objects.get_or_create(order_id=order_id, defaults={"number": f"INV-{order_id:06d}"})

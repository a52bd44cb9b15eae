"""Who changed the catalogue: background receivers of Django's signals and of the bulk signals."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from example.shop import queues
from example.shop.models import AuditEntry, Customer, Product
from outbox import (
    bulk_created,
    bulk_updated,
    current_event,
    only_for_models,
    only_when_field_changed,
    receiver,
    signal_condition,
)


@signal_condition
def prices_changed(fields: frozenset[str]) -> bool:
    """Tell new prices from the handlers' own changes of the stock."""
    return "price" in fields


# A snapshot, since an audit notes what was saved, and not what has become of it by the time it is read.
@receiver(
    post_save,
    when=only_for_models(Product, Customer) & only_when_field_changed("name"),
    snapshot=True,
    queue_name=queues.OFFICE,
)
def note_name(
    sender: type[Model], instance: Product | Customer, created: bool, changes: dict[str, Any], **kwargs: Any
) -> None:
    """Note new products and customers, and new names of old ones."""
    old, new = changes["name"]
    kind = sender._meta.verbose_name
    _note(f"New {kind} {new}" if created else f"The {kind} {old} is now called {new}")


@receiver(post_delete, sender=Product, queue_name=queues.OFFICE)
def note_deletion(sender: type[Product], instance: Product, **kwargs: Any) -> None:
    """Note a deletion; the product is gone, so what comes here is the product as it was."""
    _note(f"Deleted {instance.name}, € {instance.price}")


@receiver(bulk_created, sender=Product, queue_name=queues.OFFICE)
def note_import(sender: type[Product], instances: Sequence[Product], **kwargs: Any) -> None:
    """Note that many products came in at once."""
    _note(f"Imported products: {len(instances)}")


@receiver(bulk_updated, sender=Product, when=prices_changed, queue_name=queues.OFFICE)
def note_prices(sender: type[Product], instances: Sequence[Product], **kwargs: Any) -> None:
    """Note that many prices changed at once; a product that is gone by now is not among them."""
    _note(f"New prices: {len(instances)}")


def _note(text: str) -> None:
    event = current_event()
    assert event is not None, "a receiver runs for an event"
    context = event.headers.get("context", {})
    AuditEntry.objects.get_or_create(
        event_id=event.id,
        defaults={
            "text": text,
            "user_id": context.get("user_id") or "",
            "request_id": context.get("request_id") or "",
            "source": context.get("source") or "",
        },
    )

"""The audit of the catalogue: background receivers of Django's signals and of the bulk signals."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from outbox import (
    bulk_created,
    bulk_updated,
    current_event,
    only_for_models,
    only_when_field_changed,
    receiver,
    signal_condition,
)

from . import queues
from .models import AuditEntry, Customer, Product


@signal_condition
def prices_changed(fields: frozenset[str]) -> bool:
    """Return whether prices changed; the handlers change the stock only."""
    return "price" in fields


# A snapshot, because an audit records the saved values, and the row may have changed since.
@receiver(
    post_save,
    when=only_for_models(Product, Customer) & only_when_field_changed("name"),
    snapshot=True,
    queue_name=queues.OFFICE,
)
def note_name(
    sender: type[Model], instance: Product | Customer, created: bool, changes: dict[str, Any], **kwargs: Any
) -> None:
    """Record new products and customers, and changed names."""
    old, new = changes["name"]
    kind = sender._meta.verbose_name
    _note(f"New {kind} {new}" if created else f"The {kind} {old} is now called {new}")


@receiver(post_delete, sender=Product, queue_name=queues.OFFICE)
def note_deletion(sender: type[Product], instance: Product, **kwargs: Any) -> None:
    """Record a deletion; `instance` is the product as it was before."""
    _note(f"Deleted {instance.name}, € {instance.price}")


@receiver(bulk_created, sender=Product, queue_name=queues.OFFICE)
def note_import(sender: type[Product], instances: Sequence[Product], **kwargs: Any) -> None:
    """Record an import of products."""
    _note(f"Imported products: {len(instances)}")


@receiver(bulk_updated, sender=Product, when=prices_changed, queue_name=queues.OFFICE)
def note_prices(sender: type[Product], instances: Sequence[Product], **kwargs: Any) -> None:
    """Record a bulk change of prices; products that were deleted since are not counted."""
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

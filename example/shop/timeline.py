"""The timeline of one order: its events and the effects of its handlers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox.models import Event

from .models import AnalyticsEntry, HistoryEntry, Invoice, Mail, Order, StockMovement


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The description of one effect."""

    at: datetime
    kind: str
    text: str
    event_id: UUID | None = None


def timeline(order: Order) -> list[Entry]:
    """Return the effects of an order, oldest first."""
    return sorted(_entries(order), key=lambda entry: entry.at)


def events_of(order: Order) -> Sequence[Event]:
    """Return the events about an order, oldest first; their context names the request."""
    return list(Event.objects.filter(key=order.key).order_by("pk"))


def _entries(order: Order) -> Iterator[Entry]:
    for history in HistoryEntry.objects.filter(order=order):
        yield Entry(
            at=history.created_at, kind="history", text=f"Order {history.note}", event_id=history.event_id
        )
    for mail in Mail.objects.filter(order=order):
        yield Entry(at=mail.created_at, kind="mail", text=f"“{mail.subject}”", event_id=mail.event_id)
    for movement in StockMovement.objects.filter(order=order).select_related("product"):
        text = f"{movement.product}: " + f"{movement.quantity:+d}".replace("-", "\N{MINUS SIGN}")
        yield Entry(at=movement.created_at, kind="stock", text=text, event_id=movement.event_id)
    for analytics in AnalyticsEntry.objects.filter(order=order):
        yield Entry(
            at=analytics.created_at, kind="analytics", text=analytics.topic, event_id=analytics.event_id
        )
    for invoice in Invoice.objects.filter(order=order):
        yield Entry(at=invoice.created_at, kind="invoice", text=f"Wrote {invoice.number}")

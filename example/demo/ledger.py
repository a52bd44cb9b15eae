"""Compare the effects in the ledger with the rows in the tables."""

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal

from example.shop.catalogue import OPENING_STOCK
from example.shop.models import (
    AnalyticsEntry,
    Customer,
    HistoryEntry,
    Invoice,
    Mail,
    Order,
    Product,
    StockMovement,
)
from outbox.models import Event

from .findings import Effect, Finding, committed_orders, office, rolled_back_orders, spending, stock
from .office import entries_in_tables, expected_entries
from .orders import Placed


def check(ledger: Sequence[Placed]) -> list[Finding]:
    """Return the findings of the check."""
    expected = Counter(effect for placed in ledger for effect in placed.effects())
    actual = Counter(_effects_in_tables())
    rolled_back = {placed.order_id for placed in ledger if placed.plan.roll_back}
    return [
        committed_orders(expected, actual, orders=len(ledger) - len(rolled_back)),
        rolled_back_orders(rolled_back, actual, rows=_rows_of(rolled_back)),
        stock(_stock_left(ledger), dict(Product.objects.values_list("name", "stock"))),
        spending(_spent(ledger), dict(Customer.objects.values_list("name", "spent"))),
        office(expected_entries(ledger), entries_in_tables()),
    ]


def _effects_in_tables() -> Iterator[Effect]:
    for order_id, subject in Mail.objects.values_list("order_id", "subject"):
        yield Effect(order_id, "mail", subject)
    for order_id, topic in AnalyticsEntry.objects.values_list("order_id", "topic"):
        yield Effect(order_id, "analytics", topic)
    for order_id, note in HistoryEntry.objects.values_list("order_id", "note"):
        yield Effect(order_id, "history", note)
    movements = StockMovement.objects.values_list("order_id", "product__name", "quantity")
    for order_id, name, quantity in movements:
        yield Effect(order_id, "stock", f"{name} {quantity:+d}")
    for order_id in Invoice.objects.values_list("order_id", flat=True):
        yield Effect(order_id, "invoice")


def _rows_of(rolled_back: set[int]) -> int:
    # A rolled-back transaction leaves a gap in the sequence of ids: no other order has one of these ids.
    keys = [Order(pk=number).key for number in rolled_back]
    return Order.objects.filter(pk__in=rolled_back).count() + Event.objects.filter(key__in=keys).count()


def _stock_left(ledger: Sequence[Placed]) -> dict[str, int]:
    left = Counter({product.name: OPENING_STOCK for product in Product.objects.all()})
    for placed in ledger:
        for status in placed.statuses:
            for product, quantity in placed.stock_changes(status).items():
                left[product.name] += quantity
    return dict(left)


def _spent(ledger: Sequence[Placed]) -> dict[str, Decimal]:
    spent = dict.fromkeys(Customer.objects.values_list("name", flat=True), Decimal(0))
    for placed in ledger:
        spent[placed.plan.customer.name] += placed.spent
    return spent

"""What the demo's office does: it changes the catalogue and asks for a report, and once takes it all back."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal

from django.db import transaction
from django.utils import timezone

from example.demo.orders import Placed
from example.shop.catalogue import PRICES
from example.shop.models import AuditEntry, DailyReport, Product
from example.shop.services import RolledBackOnPurpose, change_prices, request_report
from outbox import context

KEPT, REGRETTED = "Advent calendar", "Easter basket"
PRICE, INCREASE = Decimal("25.00"), Decimal("1.10")


def do_the_office() -> None:
    """Do an afternoon's work, and regret another."""
    with context(source="the demo's office"):
        with transaction.atomic():
            _work(KEPT)
        with suppress(RolledBackOnPurpose), transaction.atomic():
            _work(REGRETTED)
            raise RolledBackOnPurpose


def _work(name: str) -> None:
    product = Product.objects.create(name=name, price=PRICE)
    change_prices(INCREASE)
    product.refresh_from_db()
    product.delete()
    request_report(timezone.localdate())


def promised_entries(ledger: Sequence[Placed]) -> Counter[str]:
    """Return what the committed part of that has promised, as the office words it."""
    orders = sum(not placed.plan.roll_back for placed in ledger)
    return Counter(
        [
            f"Imported products: {len(PRICES)}",
            f"New product {KEPT}",
            # The product that is deleted again is read in vain by then.
            f"New prices: {len(PRICES)}",
            f"Deleted {KEPT}, € {PRICE * INCREASE:.2f}",
            f"Report: {orders} orders, € {sum((placed.spent for placed in ledger), Decimal(0)):.2f}",
        ]
    )


def entries_in_tables() -> Counter[str]:
    """Return what was written."""
    reports = DailyReport.objects.values_list("orders", "turnover")
    return Counter(AuditEntry.objects.values_list("text", flat=True)) + Counter(
        f"Report: {orders} orders, € {turnover}" for orders, turnover in reports
    )

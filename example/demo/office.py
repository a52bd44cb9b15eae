"""The work of the office: changes of the catalogue and a report, once committed and once rolled back."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal

from django.db import transaction
from django.utils import timezone

from example.shop.catalogue import PRICES
from example.shop.models import AuditEntry, DailyReport, Product
from example.shop.services import RolledBackOnPurpose, change_prices, request_report
from outbox import context

from .orders import Placed

COMMITTED, ROLLED_BACK = "Advent calendar", "Easter basket"
PRICE, INCREASE = Decimal("25.00"), Decimal("1.10")


def do_the_office() -> None:
    """Do the work twice: commit it, then roll it back."""
    with context(source="the demo's office"):
        with transaction.atomic():
            _work(COMMITTED)
        with suppress(RolledBackOnPurpose), transaction.atomic():
            _work(ROLLED_BACK)
            raise RolledBackOnPurpose


def _work(name: str) -> None:
    product = Product.objects.create(name=name, price=PRICE)
    change_prices(INCREASE)
    product.refresh_from_db()
    product.delete()
    request_report(timezone.localdate())


def expected_entries(ledger: Sequence[Placed]) -> Counter[str]:
    """Return the audit entries and the report that the committed work must produce."""
    orders = sum(not placed.plan.roll_back for placed in ledger)
    return Counter(
        [
            f"Imported products: {len(PRICES)}",
            f"New product {COMMITTED}",
            # The new product is already deleted when the receiver runs.
            f"New prices: {len(PRICES)}",
            f"Deleted {COMMITTED}, € {PRICE * INCREASE:.2f}",
            f"Report: {orders} orders, € {sum((placed.spent for placed in ledger), Decimal(0)):.2f}",
        ]
    )


def entries_in_tables() -> Counter[str]:
    """Return the audit entries and reports in the tables."""
    reports = DailyReport.objects.values_list("orders", "turnover")
    return Counter(AuditEntry.objects.values_list("text", flat=True)) + Counter(
        f"Report: {orders} orders, € {turnover}" for orders, turnover in reports
    )

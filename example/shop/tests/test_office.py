"""The audit of the catalogue, and reports."""

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from example.shop.catalogue import PRICES
from example.shop.models import AuditEntry, DailyReport, Order, OrderStatus, Product
from example.shop.services import change_prices, move_order, request_report
from outbox import context
from outbox.testing import captured_events, deliver


@pytest.fixture
def catalogue(mug: Product, kettle: Product) -> list[Product]:
    """Return two products whose audit entries were removed."""
    deliver()
    AuditEntry.objects.all().delete()
    return [mug, kettle]


def audit() -> list[str]:
    """Deliver due deliveries and return the texts of the audit."""
    deliver()
    return list(AuditEntry.objects.values_list("text", flat=True))


def test_an_import_is_one_event_with_its_source(db: None) -> None:
    with captured_events() as events:
        call_command("stock_up", verbosity=0)
    events.assert_published("bulk_created.shop.product", times=1)
    deliver()
    entry = AuditEntry.objects.get()
    assert entry.text == f"Imported products: {len(PRICES)}"
    assert entry.source == "manage.py stock_up"


def test_a_second_import_publishes_nothing(db: None) -> None:
    call_command("stock_up", verbosity=0)
    with captured_events() as events:
        call_command("stock_up", verbosity=0)
    assert events == []


def test_new_prices_are_recorded_once(catalogue: list[Product]) -> None:
    change_prices(Decimal("1.10"))
    assert audit() == ["New prices: 2"]
    assert Product.objects.get(name="Mug").price == Decimal("10.45")


def test_a_change_of_stock_publishes_nothing(catalogue: list[Product]) -> None:
    with captured_events() as events:
        Product.objects.update(stock=5)
    assert events == []


def test_a_new_name_is_recorded_with_the_old_name(catalogue: list[Product]) -> None:
    mug, _ = catalogue
    mug.name = "Large mug"
    mug.save()
    assert audit() == ["The product Mug is now called Large mug"]


def test_a_deletion_is_recorded_with_name_and_price(catalogue: list[Product]) -> None:
    mug, _ = catalogue
    mug.delete()
    assert audit() == ["Deleted Mug, € 9.50"]


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_change_is_not_recorded(catalogue: list[Product]) -> None:
    with transaction.atomic(), context(source="a slip"):
        change_prices(Decimal(2))
        transaction.set_rollback(True)
    assert audit() == []


def test_a_report_is_written_by_a_worker(order: Order) -> None:
    move_order(order.pk, OrderStatus.PAID)
    request_report(timezone.localdate())
    assert not DailyReport.objects.exists()
    deliver()
    report = DailyReport.objects.get(day=timezone.localdate())
    assert (report.orders, report.turnover, report.back_ordered) == (1, Decimal("19.00"), 0)


def test_a_report_is_written_although_another_receiver_fails(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**kwargs: Any) -> int:
        raise ConnectionError("the warehouse does not answer")

    monkeypatch.setattr(Product.objects, "filter", broken)
    request_report(date(2026, 1, 31))
    delivered = deliver(handlers=["outbox.send_background"], raise_errors=False)
    [error] = delivered.errors
    assert isinstance(error, ExceptionGroup)
    assert "the warehouse does not answer" in str(error.exceptions[0])
    assert DailyReport.objects.filter(day=date(2026, 1, 31)).exists()

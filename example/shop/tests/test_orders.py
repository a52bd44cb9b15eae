"""Placing and moving orders: published events, and effects of the handlers."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command

from example.shop.handlers import LARGE_SUBJECT, AnalyticsAway, count_in_analytics, mail_status
from example.shop.models import (
    AnalyticsEntry,
    Customer,
    HistoryEntry,
    Invoice,
    Mail,
    Order,
    OrderStatus,
    Product,
    StockMovement,
)
from example.shop.services import InvalidMove, move_order, place_and_roll_back, place_order
from example.shop.signals import order_status_changed
from example.shop.tasks import close_day
from outbox import context
from outbox.operations.stats import get_stats
from outbox.testing import captured_events, deliver, fail_handler, flush_counts

BATCH = timedelta(seconds=1)


# ---------------------------------------------------------------- events


def test_placing_an_order_publishes_its_total_and_lines(customer: Customer, mug: Product) -> None:
    with captured_events() as events:
        order = place_order(customer, {mug: 2})
    events.assert_published(
        "shop.order_placed",
        key=order.key,
        payload__contains={"total": "19.00", "lines": [{"product_id": mug.pk, "quantity": 2}]},
        times=1,
    )


@pytest.mark.django_db(transaction=True)
def test_an_order_that_is_rolled_back_publishes_nothing(
    customer: Customer, mug: Product, outbox_events: Any
) -> None:
    place_and_roll_back(customer, {mug: 2})
    outbox_events.assert_not_published("shop.*")
    outbox_events.assert_not_published("post_save.shop.order")


def test_a_move_is_one_recorded_send(order: Order) -> None:
    with context(source="the till"):
        move_order(order.pk, OrderStatus.PAID)
    [send] = order_status_changed.recent()
    assert send.key == order.key
    assert send.headers["context"] == {"source": "the till"}
    assert send.arguments["order"] == order
    assert (send.arguments["old"], send.arguments["new"]) == (OrderStatus.PENDING, OrderStatus.PAID)
    assert send.arguments["total"] == Decimal("19.00")


def test_a_move_that_is_refused_publishes_nothing(order: Order) -> None:
    with captured_events() as events, pytest.raises(InvalidMove):
        move_order(order.pk, OrderStatus.SHIPPED)
    assert events == []


# ---------------------------------------------------------------- effects


def test_the_handlers_of_an_order_write_their_effects(
    order: Order, mug: Product, deliver_outbox: Any
) -> None:
    deliver_outbox(ahead=BATCH)
    mug.refresh_from_db()
    assert mug.stock == 8
    assert Mail.objects.get().subject == "We have your order"
    assert HistoryEntry.objects.get().note == "created"
    assert Invoice.objects.get().order == order


def test_a_cancelled_order_goes_back_to_stock(order: Order, mug: Product, deliver_outbox: Any) -> None:
    move_order(order.pk, OrderStatus.CANCELLED)
    deliver_outbox()
    mug.refresh_from_db()
    assert mug.stock == 10
    assert sorted(StockMovement.objects.values_list("quantity", flat=True)) == [-2, 2]


def test_history_is_written_only_if_the_status_changes(order: Order, deliver_outbox: Any) -> None:
    with captured_events() as events:
        order.save()
    events.assert_not_published("post_save.shop.order")
    move_order(order.pk, OrderStatus.PAID)
    deliver_outbox()
    assert [entry.note for entry in HistoryEntry.objects.all()] == ["created", "pending → paid"]


@pytest.mark.parametrize(("environment", "mails"), [("production", 1), ("development", 0)])
def test_only_production_mails_the_sales_department(
    customer: Customer, kettle: Product, settings: Any, environment: str, mails: int, deliver_outbox: Any
) -> None:
    settings.ENVIRONMENT = environment
    place_order(customer, {kettle: 2})
    deliver_outbox()
    assert Mail.objects.filter(subject=LARGE_SUBJECT).count() == mails


def test_analytics_count_a_batch_of_events(customer: Customer, mug: Product) -> None:
    orders = [place_order(customer, {mug: 1}) for _ in range(3)]
    assert deliver(handlers=[count_in_analytics]).succeeded == 0, "the batch still waits to be full"
    deliver(handlers=[count_in_analytics], ahead=BATCH)
    assert list(AnalyticsEntry.objects.values_list("order_id", flat=True)) == [each.pk for each in orders]


# ---------------------------------------------------------------- failures


def test_a_mail_that_fails_twice_is_sent_once(order: Order) -> None:
    move_order(order.pk, OrderStatus.PAID)
    with fail_handler(mail_status, times=2, error=ConnectionError):
        delivered = deliver(handlers=[mail_status], retries=2)
    assert (delivered.retried, delivered.succeeded) == (2, 1)
    assert Mail.objects.get().subject == "Thank you for your payment"


def test_failing_analytics_fail_each_event_of_the_batch(order: Order, settings: Any) -> None:
    move_order(order.pk, OrderStatus.PAID)
    settings.SHOP_ANALYTICS_FAILURE_RATE = 1
    delivered = deliver(handlers=[count_in_analytics], ahead=BATCH, raise_errors=False)
    assert delivered.failed == 2
    assert {type(error) for error in delivered.errors} == {AnalyticsAway}


# ---------------------------------------------------------------- ordinary receivers


def test_spending_is_updated_in_the_same_transaction(order: Order, customer: Customer) -> None:
    move_order(order.pk, OrderStatus.PAID)
    customer.refresh_from_db()
    assert customer.spent == Decimal("19.00")
    move_order(order.pk, OrderStatus.CANCELLED)
    customer.refresh_from_db()
    assert customer.spent == 0


def test_ordinary_receivers_are_in_the_statistics(order: Order, capsys: pytest.CaptureFixture[str]) -> None:
    move_order(order.pk, OrderStatus.PAID)
    flush_counts()
    [spending] = get_stats("example.shop.receivers.add_up_spending")
    assert spending.succeeded_runs == 1
    call_command("outbox_stats")
    assert "example.shop.receivers.add_up_spending" in capsys.readouterr().out


def test_a_task_adds_up_the_orders_of_the_day(order: Order, capsys: Any) -> None:
    call_command("close_day")
    deliver(handlers=["example.shop.tasks.close_day"], raise_errors=True)
    result = close_day.get_result(capsys.readouterr().out.strip())
    assert result.return_value == {"orders": 1, "total": "19.00"}

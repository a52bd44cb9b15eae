# ruff: noqa: PT009, PT027  # this file shows unittest
"""The pages, with Django's own test case."""

from decimal import Decimal

from django.contrib.auth.models import User
from django.test import TestCase, override_settings
from django.urls import reverse

from example.shop.models import AuditEntry, Customer, DailyReport, Order, Product
from example.shop.services import place_order
from outbox.testing import InjectedFailure, OutboxTestCaseMixin


@override_settings(SHOP_ANALYTICS_FAILURE_RATE=0)
class PageTests(OutboxTestCaseMixin, TestCase):
    """Requests of a logged-in user."""

    clerk: User
    mug: Product
    order: Order

    @classmethod
    def setUpTestData(cls) -> None:
        """Create a user and an order."""
        cls.clerk = User.objects.create_superuser("clerk", password="only-for-tests")
        cls.mug = Product.objects.create(name="Mug", price=Decimal("9.50"), stock=10)
        cls.order = place_order(Customer.objects.create(name="Ada"), {cls.mug: 2})

    def setUp(self) -> None:
        """Log in."""
        super().setUp()
        self.client.force_login(self.clerk)

    def pay(self) -> None:
        """Mark the order as paid."""
        address = reverse("shop:order-move", args=[self.order.pk])
        self.client.post(address, {"status": "paid"}, headers={"X-Request-ID": "req-7"})

    def test_events_contain_their_request_and_user(self) -> None:
        self.pay()
        self.assertPublished(
            "shop.order_status_changed",
            key=self.order.key,
            headers__contains={"context": {"request_id": "req-7", "user_id": self.clerk.pk}},
            among=self.outbox_events,
        )

    def test_the_page_of_an_order_shows_the_origin_of_its_events(self) -> None:
        self.pay()
        page = self.client.get(self.order.get_absolute_url())
        self.assertContains(page, f"by user {self.clerk.pk}, request req-7")

    def test_an_order_is_placed_through_the_form(self) -> None:
        form = {"customer": self.order.customer_id, f"quantity_{self.mug.pk}": 3}
        self.client.post(reverse("shop:order-new"), form)
        placed = Order.objects.latest("pk")
        self.assertPublished("shop.order_placed", key=placed.key, times=1, among=self.outbox_events)

    def test_a_failing_handler_raises_in_the_test(self) -> None:
        with self.fail_handler("example.shop.handlers.mail_confirmation"):
            self.assertRaises(InjectedFailure, self.deliver_outbox)

    def test_the_office_shows_moves_audit_and_reports(self) -> None:
        self.pay()
        self.client.post(reverse("shop:report-new"))
        self.deliver_outbox()
        page = self.client.get(reverse("shop:office"))
        self.assertContains(page, "Pending → Paid")
        self.assertContains(page, "New product Mug")
        self.assertContains(page, "19.00")
        self.assertEqual(DailyReport.objects.get().turnover, Decimal("19.00"))

    def test_the_admin_raises_prices_in_one_event(self) -> None:
        action = {"action": "raise_prices", "_selected_action": [self.mug.pk]}
        self.client.post(reverse("admin:shop_product_changelist"), action)
        self.assertPublished("bulk_updated.shop.product", times=1, among=self.outbox_events)
        self.deliver_outbox()
        note = AuditEntry.objects.get(text="New prices: 1")
        self.assertEqual(note.user_id, str(self.clerk.pk))

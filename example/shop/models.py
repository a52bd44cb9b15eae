"""The products, customers and orders of the shop."""

from collections.abc import Sequence

from django.db import models
from django.urls import reverse

from outbox import BulkSignalManager

from .effects import AnalyticsEntry, HistoryEntry, Invoice, Mail, StockMovement
from .records import AuditEntry, DailyReport

__all__ = [
    "AnalyticsEntry",
    "AuditEntry",
    "Customer",
    "DailyReport",
    "HistoryEntry",
    "Invoice",
    "Mail",
    "Order",
    "OrderLine",
    "Product",
    "StockMovement",
]


class Customer(models.Model):
    """A customer of the shop."""

    name = models.CharField(max_length=100, unique=True)
    spent = models.DecimalField(max_digits=12, decimal_places=2, default=0, editable=False)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """A product and its stock."""

    name = models.CharField(max_length=100, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0, help_text="Below zero means back-ordered.")

    # Bulk methods of this manager send signals, as `save()` does.
    objects = BulkSignalManager()
    # Stock changes with every order: this manager sends no signals and takes no extra locks.
    silent = models.Manager()  # noqa: DJ012  # a manager, and the first one must be `objects`

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class OrderStatus(models.TextChoices):
    """The progress of an order."""

    PENDING = "pending"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


NEXT_STATUSES: dict[str, Sequence[OrderStatus]] = {
    OrderStatus.PENDING: (OrderStatus.PAID, OrderStatus.CANCELLED),
    OrderStatus.PAID: (OrderStatus.SHIPPED, OrderStatus.CANCELLED),
}


class Order(models.Model):
    """An order of one customer."""

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=OrderStatus, default=OrderStatus.PENDING)
    total = models.DecimalField(max_digits=10, decimal_places=2)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"Order {self.pk}"

    def get_absolute_url(self) -> str:
        """Return the address of the order's own page."""
        return reverse("shop:order", args=[self.pk])

    @property
    def key(self) -> str:
        """The key of every event of this order; signals of the instance have the same key."""
        return f"shop.order:{self.pk}"

    @staticmethod
    def pk_of(key: str) -> int:
        """Return the id of the order that an event's key names."""
        return int(key.removeprefix("shop.order:"))

    @property
    def next_statuses(self) -> Sequence[OrderStatus]:
        """The statuses this order can move on to."""
        return NEXT_STATUSES.get(self.status, ())


class OrderLine(models.Model):
    """A quantity of one product, at the price of the order's day."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="lines")
    quantity = models.PositiveSmallIntegerField()
    price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        ordering = ["product_id"]
        constraints = [
            models.UniqueConstraint(fields=["order", "product"], name="shop_one_line_per_product"),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} of product {self.product_id}"

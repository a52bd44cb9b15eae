"""What the shop sells, to whom, and the orders."""

from collections.abc import Sequence

from django.db import models
from django.urls import reverse

from example.shop.effects import AnalyticsEntry, HistoryEntry, Invoice, Mail, StockMovement
from example.shop.records import AuditEntry, DailyReport
from outbox import BulkSignalManager

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
    """Somebody who orders."""

    name = models.CharField(max_length=100, unique=True)
    spent = models.DecimalField(max_digits=12, decimal_places=2, default=0, editable=False)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """Something to sell, and how much of it there is."""

    name = models.CharField(max_length=100, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0, help_text="Below zero means back-ordered.")

    # Imports and changes of many prices are told of, as `save()` is.
    objects = BulkSignalManager()
    # Stock moves with every order: nobody wants to hear of it, and a row is locked no more than it must be.
    silent = models.Manager()  # noqa: DJ012  # a manager, and the first one must be `objects`

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class OrderStatus(models.TextChoices):
    """How far an order has come."""

    PENDING = "pending"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


NEXT_STATUSES: dict[str, Sequence[OrderStatus]] = {
    OrderStatus.PENDING: (OrderStatus.PAID, OrderStatus.CANCELLED),
    OrderStatus.PAID: (OrderStatus.SHIPPED, OrderStatus.CANCELLED),
}


class Order(models.Model):
    """What one customer ordered at one time."""

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
        """The key of every event about this order: the one that signals give to an instance by themselves."""
        return f"shop.order:{self.pk}"

    @staticmethod
    def pk_of(key: str) -> int:
        """Return which order an event's key stands for."""
        return int(key.removeprefix("shop.order:"))

    @property
    def next_statuses(self) -> Sequence[OrderStatus]:
        """The statuses this order can move on to."""
        return NEXT_STATUSES.get(self.status, ())


class OrderLine(models.Model):
    """So many of one product, at the price of the day."""

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

"""The effects of the handlers, one row each.

Delivery is at least once: a handler may run more than once for the same event. Each row therefore has a
unique constraint, and handlers write it with `get_or_create`: a second run finds the row of the first.
"""

from django.db import models


class Effect(models.Model):
    """Something that a handler did for an order because of an event."""

    event_id = models.UUIDField(editable=False)
    # No constraint in the database: it would refuse the effect of a rolled-back order. The demo's check must
    # find such a row instead.
    order = models.ForeignKey("shop.Order", on_delete=models.CASCADE, db_constraint=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        abstract = True
        ordering = ["id"]


class Mail(Effect):
    """A mail to the customer; the example only writes the row."""

    subject = models.CharField(max_length=100)

    class Meta(Effect.Meta):
        constraints = [models.UniqueConstraint(fields=["event_id"], name="shop_one_mail_per_event")]

    def __str__(self) -> str:
        return self.subject


class StockMovement(Effect):
    """Goods taken from stock (below zero) or put back."""

    product = models.ForeignKey("shop.Product", on_delete=models.PROTECT, related_name="movements")
    quantity = models.IntegerField()

    class Meta(Effect.Meta):
        constraints = [
            models.UniqueConstraint(
                fields=["event_id", "product"], name="shop_one_movement_per_event_and_product"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.quantity:+d}"


class AnalyticsEntry(Effect):
    """A line for the analytics department."""

    topic = models.CharField(max_length=100)

    class Meta(Effect.Meta):
        verbose_name_plural = "analytics entries"
        constraints = [
            models.UniqueConstraint(fields=["event_id"], name="shop_one_analytics_entry_per_event")
        ]

    def __str__(self) -> str:
        return self.topic


class HistoryEntry(Effect):
    """A change of an order, written by a receiver of `post_save`."""

    note = models.CharField(max_length=100)

    class Meta(Effect.Meta):
        verbose_name_plural = "history entries"
        constraints = [models.UniqueConstraint(fields=["event_id"], name="shop_one_history_entry_per_event")]

    def __str__(self) -> str:
        return self.note


class Invoice(models.Model):
    """The invoice of an order; one row an order, so that a second run has no effect."""

    order = models.OneToOneField("shop.Order", on_delete=models.CASCADE, db_constraint=False)
    number = models.CharField(max_length=20)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.number

"""The records of the office: audit entries and daily reports."""

from django.db import models


class AuditEntry(models.Model):
    """A change of the catalogue or of a customer, with its origin; one row an event."""

    event_id = models.UUIDField(unique=True, editable=False)
    text = models.CharField(max_length=200)
    user_id = models.CharField(max_length=40, blank=True)
    request_id = models.CharField(max_length=128, blank=True)
    source = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return self.text


class DailyReport(models.Model):
    """The figures of one day; one row a day, so that a second run has no effect."""

    day = models.DateField(unique=True)
    orders = models.PositiveIntegerField(default=0)
    turnover = models.DecimalField(max_digits=12, decimal_places=2, default=0)
    back_ordered = models.PositiveIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-day"]

    def __str__(self) -> str:
        return f"{self.day}"

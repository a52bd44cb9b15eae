"""The shop in the admin."""

from decimal import Decimal
from typing import ClassVar

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from .models import (
    AnalyticsEntry,
    AuditEntry,
    Customer,
    DailyReport,
    HistoryEntry,
    Invoice,
    Mail,
    Order,
    OrderLine,
    Product,
    StockMovement,
)
from .services import change_prices


class OrderLineInline(admin.TabularInline):
    """The lines of an order."""

    model = OrderLine
    extra = 0


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    """Customers."""

    search_fields = ("name",)


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products."""

    list_display = ("name", "price", "stock")
    search_fields = ("name",)
    actions: ClassVar = ["raise_prices"]

    @admin.action(description="Raise the prices of all products by 5 %%", permissions=["change"])
    def raise_prices(self, request: HttpRequest, queryset: QuerySet[Product]) -> None:
        """Raise all prices in one statement; the audit receives `bulk_updated`."""
        self.message_user(request, f"Changed {change_prices(Decimal('1.05'))} prices.")


class ReadOnlyAdmin(admin.ModelAdmin):
    """Read-only: a row that is added or changed here would have no event."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse."""
        return False


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    """Orders; the pages of the shop place and move them."""

    list_display = ("id", "customer", "status", "total", "created_at")
    list_filter = ("status",)
    list_select_related = ("customer",)
    inlines: ClassVar = [OrderLineInline]


@admin.register(Mail, StockMovement, AnalyticsEntry, HistoryEntry, Invoice)
class EffectAdmin(ReadOnlyAdmin):
    """Effects of the handlers."""

    list_display = ("__str__", "order", "created_at")
    list_select_related = ("order",)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Changes of the catalogue and their users."""

    list_display = ("text", "user_id", "source", "request_id", "created_at")


@admin.register(DailyReport)
class DailyReportAdmin(ReadOnlyAdmin):
    """Reports."""

    list_display = ("day", "orders", "turnover", "back_ordered")

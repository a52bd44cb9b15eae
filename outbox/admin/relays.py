"""Relays: which live, and what they last did."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, Case, Value, When
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ..models import RelayHeartbeat
from ..models.heartbeat import ALIVE_FOR
from . import display
from .base import OutboxAdmin
from .paging import Order


@admin.register(RelayHeartbeat)
class RelayHeartbeatAdmin(OutboxAdmin):
    """The list of relays; rows of more than a day ago are gone."""

    list_display = (
        "__str__",
        "life",
        "state",
        "serves",
        "started",
        "last_heard_of",
        "last_dispatch",
        "dispatched",
    )
    fields = (*list_display[:3], "detail", *list_display[3:], "host", "pid", "id")
    readonly_fields = fields

    started = staticmethod(display.moment_of("started_at", _("started")))
    last_heard_of = staticmethod(display.moment_of("seen_at", _("last heard of")))
    last_dispatch = staticmethod(display.moment_of("last_dispatch_at", _("last dispatch")))

    def get_order(self, chosen: dict[str, str]) -> Order:
        """Return the order by the last sign of life."""
        return Order(("seen_at", "pk"), descending=True)

    def get_queryset(self, request: HttpRequest) -> Any:
        """Ask the database's clock who is alive."""
        alive = When(seen_at__gte=Now() - ALIVE_FOR, then=Value(True))
        return (
            super()
            .get_queryset(request)
            .annotate(is_alive=Case(alive, default=Value(False), output_field=BooleanField()))
        )

    @admin.display(description=_("alive"))
    def life(self, relay: Any) -> SafeString:
        """Show whether it was heard of within the last 30 seconds."""
        return (
            display.badge("succeeded", _("alive")) if relay.is_alive else display.badge("failed", _("silent"))
        )

    @admin.display(description=_("queues"))
    def serves(self, relay: RelayHeartbeat) -> Any:
        """Show the queues it is restricted to."""
        return relay.queues.replace(",", ", ") or _("all")

"""The processes of the outbox, relays and workers, and their last heartbeats."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, Case, Value, When
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from outbox.models import ProcessHeartbeat
from outbox.models.heartbeat import ALIVE_FOR

from . import formatting
from .base import OutboxAdmin
from .pagination import Ordering


@admin.register(ProcessHeartbeat)
class ProcessHeartbeatAdmin(OutboxAdmin):
    """The list of relays and workers; rows without a heartbeat for a day have been deleted."""

    list_display = (
        "__str__",
        "kind",
        "present_state",
        "served_queues",
        "threads",
        "version",
        "started",
        "last_heartbeat",
        "last_dispatch",
        "dispatched_number",
    )
    fields = (*list_display[:3], "detail", "reported_problems", *list_display[3:], "host", "pid", "id")
    readonly_fields = fields

    started = staticmethod(formatting.timestamp_column("started_at", _("started")))
    last_heartbeat = staticmethod(formatting.timestamp_column("seen_at", _("last heartbeat")))
    last_dispatch = staticmethod(formatting.timestamp_column("last_dispatch_at", _("last dispatch")))

    def list_order(self, chosen: dict[str, str]) -> Ordering:
        """Return the order by the last heartbeat."""
        return Ordering(("seen_at", "pk"), descending=True)

    def get_queryset(self, request: HttpRequest) -> Any:
        """Annotate whether a process is alive, by the database clock."""
        alive = When(seen_at__gte=Now() - ALIVE_FOR, then=Value(True))
        return (
            super()
            .get_queryset(request)
            .annotate(is_alive=Case(alive, default=Value(False), output_field=BooleanField()))
        )

    @admin.display(description=_("state"))
    def present_state(self, process: Any) -> SafeString:
        """Show the state of a live process; a process without a heartbeat for 30 seconds is dead."""
        if not process.is_alive:
            return formatting.badge("failed", _("dead"))
        return formatting.badge("succeeded" if process.state == "running" else "pending", process.state)

    @admin.display(description=_("queues"))
    def served_queues(self, process: ProcessHeartbeat) -> Any:
        """Show the queues that the process serves."""
        return process.queues.replace(",", ", ") or _("all")

    @admin.display(description=_("dispatched"))
    def dispatched_number(self, process: ProcessHeartbeat) -> str:
        """Show the deliveries that a relay has dispatched."""
        return formatting.number(process.dispatched)

    @admin.display(description=_("problems"))
    def reported_problems(self, process: ProcessHeartbeat) -> Any:
        """Show the causes of the problems that the process reports."""
        causes = [(problem.get("cause", ""),) for problem in process.problems]
        return format_html_join("\n", "<div>{}</div>", causes) or formatting.EMPTY

"""Statistics: all handlers side by side, and a page for each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from ..durations import format_duration
from ..models import HandlerStats, PausedHandler
from ..registry import registry
from ..stats import HandlerSummary, Slot, get_series, get_stats
from . import display
from .base import OutboxAdmin
from .charts import Chart, chart_of


@dataclass(frozen=True)
class Window:
    """A stretch of time that ends now, and the width of a chart's bars in it."""

    name: str
    label: Any
    length: timedelta
    step: timedelta


_WINDOWS = (
    Window("hour", _("Last hour"), timedelta(hours=1), timedelta(minutes=1)),
    Window("day", _("Last day"), timedelta(days=1), timedelta(hours=1)),
    Window("week", _("Last 7 days"), timedelta(days=7), timedelta(hours=4)),
)


@dataclass(frozen=True)
class Pausing:
    """Whether a handler is paused, and whether it could be: functions that are only monitored could not."""

    name: str
    is_paused: bool
    reason: str
    is_known: bool


@dataclass(frozen=True)
class Row:
    """One handler as the pages show it."""

    name: Any
    summary: HandlerSummary
    chart: Chart
    url: str
    durations: list[tuple[Any, str]]
    pausing: Pausing


@admin.register(HandlerStats)
class HandlerStatsAdmin(OutboxAdmin):
    """Two pages of their own: a row of the table, one minute of a handler, tells nobody anything."""

    def get_urls(self) -> list[Any]:
        """Return the two pages."""
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.changelist_view), name="outbox_handlerstats_changelist"),
            path("<path:handler>/", wrap(self.handler_view), name="outbox_handlerstats_handler"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show all handlers."""
        context: dict[str, Any] = {"title": capfirst(HandlerStats._meta.verbose_name_plural), "trail": []}
        return self._render(request, "admin/outbox/stats.html", None, {**context, **(extra_context or {})})

    def handler_view(self, request: HttpRequest, handler: str) -> HttpResponse:
        """Show one handler."""
        deliveries = self.url("delivery_changelist")
        context = {
            "title": handler,
            "handler": handler,
            "trail": [(self.url("handlerstats_changelist"), HandlerStats._meta.verbose_name_plural)],
            "deliveries_url": deliveries,
        }
        return self._render(request, "admin/outbox/handler.html", handler, context)

    def _render(
        self, request: HttpRequest, template: str, handler: str | None, context: dict[str, Any]
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        window = next((each for each in _WINDOWS if each.name == request.GET.get("window")), _WINDOWS[1])
        paused = dict(PausedHandler.objects.values_list("handler", "reason"))
        if handler is not None:
            context["pausing"] = _pausing(handler, paused)
        context |= {"windows": _WINDOWS, "window": window, "rows": self._rows(handler, window, paused)}
        shared = self.page_context(request, **self.pause_buttons(request), **context)
        return TemplateResponse(request, template, shared)

    def _rows(self, handler: str | None, window: Window, paused: dict[str, str]) -> list[Row]:
        database = router.db_for_read(HandlerStats)
        series = get_series(window.length, window.step, handler, using=database)
        return [
            self._row(summary, series.get(summary.handler, []), _pausing(summary.handler, paused))
            for summary in get_stats(handler, window.length, using=database)
        ]

    def _row(self, summary: HandlerSummary, slots: list[Slot], pausing: Pausing) -> Row:
        labels = (_("mean"), _("p50"), _("p95"), _("p99"), _("maximum"))
        values = (summary.mean_s, summary.p50_s, summary.p95_s, summary.p99_s, summary.max_s)
        durations = [
            (label, format_duration(value) if summary.runs else display.NOTHING)
            for label, value in zip(labels, values, strict=True)
        ]
        return Row(
            display.dotted(summary.handler),
            summary,
            chart_of(slots),
            self.url("handlerstats_handler", summary.handler),
            durations,
            pausing,
        )


def _pausing(handler: str, paused: dict[str, str]) -> Pausing:
    is_known = handler in registry.handlers
    return Pausing(handler, handler in paused, paused.get(handler, ""), is_known)

"""The statistics of handlers: a page of all handlers, and a page for each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, re_path
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from outbox.durations import format_duration
from outbox.models import HandlerStats, PausedHandler
from outbox.operations.stats import (
    HandlerSummary,
    Slot,
    count_failed_deliveries,
    get_series,
    get_stats,
    summary_without_runs,
)
from outbox.registry import registry

from . import formatting
from .base import OutboxAdmin
from .charts import Chart, Period, chart_of

# The count of failed deliveries of one handler stops here.
_FAILED_LIMIT = 10_000


_PERIODS = (
    Period("hour", _("Last hour"), timedelta(hours=1), timedelta(minutes=1)),
    Period("day", _("Last day"), timedelta(days=1), timedelta(hours=1)),
    Period("week", _("Last 7 days"), timedelta(days=7), timedelta(hours=4)),
)


@dataclass(frozen=True)
class PauseState:
    """Whether a handler is paused, and whether it is registered; a monitored function cannot be paused."""

    name: str
    is_paused: bool
    reason: str
    is_registered: bool


@dataclass(frozen=True)
class HandlerRow:
    """One handler in the context of the templates."""

    name: Any
    summary: HandlerSummary
    chart: Chart
    url: str
    durations: list[tuple[Any, str]]
    pause_state: PauseState


@admin.register(HandlerStats)
class HandlerStatsAdmin(OutboxAdmin):
    """Pages of summed statistics; the rows of the table, one a minute and handler, have no page."""

    def get_urls(self) -> list[Any]:
        """Return the two pages."""
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.changelist_view), name="outbox_handlerstats_changelist"),
            # Unlike a path converter, the pattern takes a name with line breaks, which `monitor` allows.
            re_path(r"^(?P<handler>[\s\S]+)/\Z", wrap(self.handler_view), name="outbox_handlerstats_handler"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show all handlers."""
        title = capfirst(HandlerStats._meta.verbose_name_plural)
        context: dict[str, Any] = {"title": title, "breadcrumbs": []}
        return self._render(request, "admin/outbox/handlers.html", None, {**context, **(extra_context or {})})

    def handler_view(self, request: HttpRequest, handler: str) -> HttpResponse:
        """Show one handler."""
        context = {
            "title": handler,
            "handler": handler,
            "breadcrumbs": [(self.url("handlerstats_changelist"), HandlerStats._meta.verbose_name_plural)],
            "deliveries_url": self.url("delivery_changelist"),
            "failed_deliveries": self._failed_deliveries(handler),
        }
        return self._render(request, "admin/outbox/handler.html", handler, context)

    def _failed_deliveries(self, handler: str) -> str:
        count = count_failed_deliveries(handler, limit=_FAILED_LIMIT, using=router.db_for_read(HandlerStats))
        return formatting.limited(count, _FAILED_LIMIT)

    def _render(
        self, request: HttpRequest, template: str, handler: str | None, context: dict[str, Any]
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        period = next((each for each in _PERIODS if each.name == request.GET.get("period")), _PERIODS[1])
        paused = dict(PausedHandler.objects.values_list("handler", "reason"))
        if handler is not None:
            context["pause_state"] = _pause_state(handler, paused)
        context |= {"periods": _PERIODS, "period": period, "rows": self._rows(handler, period, paused)}
        shared = self.page_context(request, **self.pause_context(request), **context)
        return TemplateResponse(request, template, shared)

    def _rows(self, handler: str | None, period: Period, paused: dict[str, str]) -> list[HandlerRow]:
        database = router.db_for_read(HandlerStats)
        series = get_series(period.length, period.step, handler, using=database)
        summaries = get_stats(handler, period.length, using=database)
        if handler is None:
            idle = paused.keys() - {summary.handler for summary in summaries}
            summaries = sorted([*summaries, *map(summary_without_runs, idle)], key=lambda one: one.handler)
        return [
            self._row(summary, series.get(summary.handler, []), _pause_state(summary.handler, paused))
            for summary in summaries
        ]

    def _row(self, summary: HandlerSummary, slots: list[Slot], pause_state: PauseState) -> HandlerRow:
        labels = (_("mean"), _("p50"), _("p95"), _("p99"), _("maximum"))
        values = (summary.mean_s, summary.p50_s, summary.p95_s, summary.p99_s, summary.max_s)
        durations = [
            (label, format_duration(value) if summary.runs else formatting.EMPTY)
            for label, value in zip(labels, values, strict=True)
        ]
        return HandlerRow(
            formatting.dotted(summary.handler),
            summary,
            chart_of(slots),
            self.url("handlerstats_handler", summary.handler),
            durations,
            pause_state,
        )


def _pause_state(handler: str, paused: dict[str, str]) -> PauseState:
    is_registered = registry.find(handler) is not None
    return PauseState(handler, handler in paused, paused.get(handler, ""), is_registered)

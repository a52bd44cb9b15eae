"""The template context of the overview's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from outbox.durations import format_duration
from outbox.models import ProcessHeartbeat
from outbox.operations.error_groups import ErrorGroup, error_groups
from outbox.operations.handler_activity import (
    GROUPED_LIMIT,
    HANDLER_LIMIT,
    HandlerActivity,
    get_handler_activity,
)
from outbox.operations.health import get_health
from outbox.operations.health_report import COUNT_LIMIT, Health, Problem, ProblemKind
from outbox.operations.timeline import TimelineStep, get_timeline

from . import formatting
from .charts import Chart, Period, chart_of
from .problem_actions import Button, buttons_of
from .recent_actions import recent_actions

if TYPE_CHECKING:
    from .base import OutboxAdmin

# Groups of errors of one handler.
_ERRORS_SHOWN = 5
_PROCESSES_SHOWN = 50
_ACTIONS_SHOWN = 10

_NEW_CHARTS_AFTER_S = {"hour": 10, "day": 60, "week": 60}

PERIODS = (
    Period("hour", _("1 hour"), timedelta(hours=1), timedelta(minutes=1)),
    Period("day", _("24 hours"), timedelta(days=1), timedelta(minutes=15)),
    Period("week", _("7 days"), timedelta(days=7), timedelta(hours=2)),
)
_STEP_LABELS = {"hour": _("minute"), "day": _("15 min"), "week": _("2 h")}


@dataclass(frozen=True)
class Figure:
    """One of the six figures; `state` is the colour of the figure if it is not as it should be."""

    label: Any
    value: str
    url: str
    state: str = ""


@dataclass(frozen=True)
class ProblemRow:
    """One problem with its buttons, and the groups of its errors."""

    key: str
    problem: Problem
    buttons: list[Button]
    errors: list[tuple[ErrorGroup, Any, Any]]


@dataclass(frozen=True)
class HandlerRow:
    """One registered handler."""

    activity: HandlerActivity
    name: Any
    url: str
    deliveries_url: str
    due: str
    waiting: str
    unconfirmed: str
    failed: str
    rate: str
    p95: str
    chart: Chart


def live_context(model_admin: OutboxAdmin, request: HttpRequest, database: str) -> dict[str, Any]:
    """Return the figures of the page; each statement reads a bounded number of rows.

    The parameter `charts=no` leaves out the charts, which change less often than the page refreshes.
    """
    health = get_health(database)
    period = next((each for each in PERIODS if each.name == request.GET.get("period")), PERIODS[0])
    context: dict[str, Any] = {
        "health": health,
        "measured_at": formatting.timestamp(health.measured_at),
        "problems": _problems(model_admin, request, health),
        "figures": _figures(model_admin, health),
        "handlers": [
            _handler(model_admin, each) for each in get_handler_activity(database, health.blocked_keys)
        ],
        "processes": health.processes[:_PROCESSES_SHOWN],
        "more_processes": max(len(health.processes) - _PROCESSES_SHOWN, 0),
        "processes_url": model_admin.url("processheartbeat_changelist"),
        "recent_actions": recent_actions(_ACTIONS_SHOWN),
        "periods": PERIODS,
        "period": period,
        "overview_url": model_admin.url("overview"),
        "search_url": model_admin.url("overview_search"),
        "kinds": ProcessHeartbeat.Kind,
        **model_admin.pause_context(request),
    }
    if request.GET.get("charts") != "no":
        context |= _charts(get_timeline(period.length, period.step, database), period)
    return context


def _problems(model_admin: OutboxAdmin, request: HttpRequest, health: Health) -> list[ProblemRow]:
    rows = []
    for problem, buttons in zip(health.problems, buttons_of(model_admin, request, health), strict=True):
        groups = []
        if problem.kind == ProblemKind.HANDLER_FAILS:
            groups = error_groups(health.database, problem.subject, limit=_ERRORS_SHOWN)
        errors = [
            (group, formatting.timestamp(group.first_at), formatting.timestamp(group.last_at))
            for group in groups
        ]
        rows.append(ProblemRow(f"{problem.kind} {problem.subject}", problem, buttons, errors))
    return rows


def _figures(model_admin: OutboxAdmin, health: Health) -> Sequence[Figure]:
    figures, list_url = health.figures, model_admin.url("delivery_changelist")
    throughput = figures.throughput_per_minute
    kinds = {problem.kind for problem in health.problems}
    no_worker = kinds & {ProblemKind.NO_WORKER, ProblemKind.NOTHING_CONFIRMED}
    no_relay = kinds & {ProblemKind.NO_RELAY, ProblemKind.RELAY_IN_TROUBLE}
    due_state = "failed" if no_relay and figures.due else ""
    unconfirmed_state = "failed" if no_worker else "pending" if ProblemKind.OVERDUE in kinds else ""
    due, unconfirmed = f"{list_url}?state=pending", f"{list_url}?state=dispatched"
    return (
        Figure(_("due"), formatting.limited(figures.due, COUNT_LIMIT), due, due_state),
        Figure(_("oldest due"), _age(figures.oldest_due_s), due, due_state),
        Figure(
            _("unconfirmed"),
            formatting.limited(figures.unconfirmed, COUNT_LIMIT),
            unconfirmed,
            unconfirmed_state,
        ),
        Figure(_("oldest unconfirmed"), _age(figures.oldest_unconfirmed_s), unconfirmed, unconfirmed_state),
        Figure(
            _("failed"),
            formatting.limited(figures.failed, COUNT_LIMIT),
            f"{list_url}?state=failed",
            "failed" if figures.failed else "",
        ),
        Figure(
            _("succeeded per minute"),
            formatting.EMPTY if throughput is None else formatting.number(throughput),
            model_admin.url("handlerstats_changelist"),
        ),
    )


def _age(seconds: float) -> str:
    return format_duration(seconds) if seconds else formatting.EMPTY


def _handler(model_admin: OutboxAdmin, each: HandlerActivity) -> HandlerRow:
    query = urlencode({"handler": each.name})
    return HandlerRow(
        activity=each,
        name=formatting.dotted(each.name),
        url=model_admin.url("handlerstats_handler", each.name),
        deliveries_url=f"{model_admin.url('delivery_changelist')}?{query}",
        due=formatting.limited(each.due, GROUPED_LIMIT),
        waiting=formatting.limited(each.waiting, HANDLER_LIMIT),
        unconfirmed=formatting.limited(each.unconfirmed, GROUPED_LIMIT),
        failed=formatting.limited(each.failed, HANDLER_LIMIT),
        rate=formatting.number(each.rate_per_minute, 1 if 0 < each.rate_per_minute < 10 else 0),
        p95=formatting.EMPTY if each.p95_s is None else format_duration(each.p95_s),
        chart=chart_of(each.slots),
    )


def _charts(steps: Sequence[TimelineStep], period: Period) -> dict[str, Any]:
    shown = "%a %H:%M" if period.name == "week" else "%H:%M"
    rows = [
        {
            "at": int(step.start.timestamp()),
            "time": f"{formatting.in_zone(step.start):{shown}}",
            "step": step,
            "values": (
                step.published,
                step.dispatched,
                step.succeeded,
                step.retried,
                step.failed,
                step.backlog,
            ),
            "oldest": "" if step.oldest_s is None else f"{step.oldest_s:.3f}",
            "oldest_text": formatting.EMPTY if step.oldest_s is None else _age(step.oldest_s),
        }
        for step in steps
    ]
    return {
        "timeline": rows,
        "step_label": _STEP_LABELS[period.name],
        "step_s": int(period.step.total_seconds()),
        "charts_every_s": _NEW_CHARTS_AFTER_S[period.name],
        "zone": timezone.get_current_timezone_name(),
        "zone_label": formatting.in_zone(steps[-1].start).tzname(),
    }

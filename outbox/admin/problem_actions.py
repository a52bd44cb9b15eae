"""The buttons and links of the problems on the overview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from outbox.models import OperatorJob
from outbox.operations.blocked_keys import BlockedKey
from outbox.operations.health_report import COUNT_LIMIT, Health, Problem, ProblemKind

from . import formatting
from .base import CHANGE_PAUSED
from .job_links import job_url, permission_of

if TYPE_CHECKING:
    from .base import OutboxAdmin

CHANGE_DELIVERY = "change_delivery"


@dataclass(frozen=True, kw_only=True)
class Button:
    """A link, or a form with one button.

    Args:
        fields: the hidden fields of a form with the method POST; None for a link.
        permission: the permission of this app that the user needs; empty for none.
    """

    label: Any
    url: str
    fields: dict[str, str] | None = None
    permission: str = ""
    is_danger: bool = False


def buttons_of(model_admin: OutboxAdmin, request: HttpRequest, health: Health) -> list[list[Button]]:
    """Return the buttons of each problem of a report that the user may use."""
    blocked = iter(health.blocked_keys)
    found = []
    for problem in health.problems:
        if problem.kind == ProblemKind.BLOCKED_KEY:
            # The report has one problem for each of its blocked keys, in the same order.
            buttons = _of_blocked_key(model_admin, next(blocked))
        else:
            buttons = _BUTTONS[problem.kind](model_admin, problem)
        found.append([each for each in buttons if _is_allowed(model_admin, request, each)])
    return found


def _is_allowed(model_admin: OutboxAdmin, request: HttpRequest, button: Button) -> bool:
    return not button.permission or model_admin.has_app_permission(request, button.permission)


def _processes(model_admin: OutboxAdmin, _problem: Problem) -> Sequence[Button]:
    return [Button(label=_("Show processes"), url=model_admin.url("processheartbeat_changelist"))]


def _deliveries(label: Any, **filters: str) -> Callable[[OutboxAdmin, Problem], Sequence[Button]]:
    def buttons(model_admin: OutboxAdmin, problem: Problem) -> Sequence[Button]:
        return [_show(model_admin, label, **filters)]

    return buttons


def _of_failing_handler(model_admin: OutboxAdmin, problem: Problem) -> Sequence[Button]:
    query = urlencode({"handler": problem.subject, "overview": "1"})
    return [
        _retry_all(model_admin, problem),
        _show(model_admin, _("Show failed deliveries"), state="failed", handler=problem.subject),
        Button(
            label=_("Pause…"),
            url=f"{model_admin.url('pausedhandler_pause')}?{query}",
            permission=CHANGE_PAUSED,
        ),
    ]


def _retry_all(model_admin: OutboxAdmin, problem: Problem) -> Button:
    label = _("Retry all %(count)s…") % {"count": formatting.limited(problem.count, COUNT_LIMIT)}
    url = job_url(model_admin, OperatorJob.Verb.RETRY, handler=problem.subject)
    return Button(label=label, url=url, permission=permission_of(OperatorJob.Verb.RETRY))


def _of_overdue(model_admin: OutboxAdmin, _problem: Problem) -> Sequence[Button]:
    url = job_url(model_admin, OperatorJob.Verb.RESEND)
    return [
        Button(label=_("Resend all…"), url=url, permission=permission_of(OperatorJob.Verb.RESEND)),
        _show(model_admin, _("Show unconfirmed deliveries"), state="dispatched"),
    ]


def _of_blocked_key(model_admin: OutboxAdmin, blocked: BlockedKey) -> Sequence[Button]:
    head = blocked.delivery_id
    return [
        Button(
            label=_("Retry"),
            url=model_admin.url("delivery_retry", head),
            fields={"overview": "1"},
            permission=CHANGE_DELIVERY,
        ),
        Button(
            label=_("Discard…"),
            url=f"{model_admin.url('delivery_discard', head)}?overview=1",
            permission=CHANGE_DELIVERY,
            is_danger=True,
        ),
        Button(label=_("Show the failed delivery"), url=model_admin.url("delivery_change", head)),
    ]


def _of_handler(label: Any, state: str) -> Callable[[OutboxAdmin, Problem], Sequence[Button]]:
    def buttons(model_admin: OutboxAdmin, problem: Problem) -> Sequence[Button]:
        return [_show(model_admin, label, state=state, handler=problem.subject)]

    return buttons


def _of_paused_handler(model_admin: OutboxAdmin, problem: Problem) -> Sequence[Button]:
    return [
        Button(
            label=_("Resume"),
            url=model_admin.url("pausedhandler_resume"),
            fields={"handler": problem.subject, "overview": "1"},
            permission=CHANGE_PAUSED,
        ),
        _show(model_admin, _("Show waiting deliveries"), state="waiting", handler=problem.subject),
    ]


def _of_unhandled_topic(model_admin: OutboxAdmin, problem: Problem) -> Sequence[Button]:
    query = urlencode({"topic": problem.subject})
    return [Button(label=_("Show events"), url=f"{model_admin.url('event_changelist')}?{query}")]


def _show(model_admin: OutboxAdmin, label: Any, **filters: str) -> Button:
    return Button(label=label, url=f"{model_admin.url('delivery_changelist')}?{urlencode(filters)}")


_UNCONFIRMED = _deliveries(_("Show unconfirmed deliveries"), state="dispatched")

_BUTTONS: dict[ProblemKind, Callable[[OutboxAdmin, Problem], Sequence[Button]]] = {
    ProblemKind.NO_RELAY: _processes,
    ProblemKind.RELAY_IN_TROUBLE: _processes,
    ProblemKind.RELAY_POLLS: _processes,
    ProblemKind.NO_WORKER: _processes,
    ProblemKind.NOTHING_CONFIRMED: _UNCONFIRMED,
    ProblemKind.OVERDUE: _of_overdue,
    ProblemKind.LAG: _deliveries(_("Show due deliveries"), state="pending"),
    ProblemKind.UNKNOWN_HANDLER: _of_handler(_("Show its deliveries"), "pending"),
    ProblemKind.PUT_OFF: _of_handler(_("Show its deliveries"), "pending"),
    ProblemKind.HANDLER_FAILS: _of_failing_handler,
    ProblemKind.PAUSED_HANDLER: _of_paused_handler,
    ProblemKind.UNHANDLED_TOPIC: _of_unhandled_topic,
}

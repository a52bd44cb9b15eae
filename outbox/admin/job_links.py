"""The addresses of the page that requests a job, for lists and for the problems of the overview."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from outbox.models import OperatorJob

from .pagination import AFTER, BEFORE

if TYPE_CHECKING:
    from .base import OutboxAdmin

# The filters of the list that jobs have too; with another one, a job would change other deliveries. The
# position of a page is no filter.
_SHARED = {"state", "handler", "topic", AFTER, BEFORE}

# The jobs that a list of this state offers.
_OFFERED: dict[str, tuple[tuple[str, Any], ...]] = {
    "failed": (
        (OperatorJob.Verb.RETRY, _("Retry all that match…")),
        (OperatorJob.Verb.DISCARD, _("Discard all that match…")),
    ),
    "dispatched": ((OperatorJob.Verb.RESEND, _("Resend all that match…")),),
}


def permission_of(verb: str) -> str:
    """Return the permission of this app for jobs with a verb."""
    return f"{verb}_deliveries"


def job_url(model_admin: OutboxAdmin, verb: str, **filters: str) -> str:
    """Return the address of the page that requests a job."""
    chosen = {name: value for name, value in filters.items() if value}
    return f"{model_admin.url('job_confirm')}?{urlencode({'verb': verb, **chosen})}"


def job_links(model_admin: OutboxAdmin, request: HttpRequest) -> list[tuple[Any, str]]:
    """Return label and address of each job on all deliveries of a list that the user may request."""
    chosen: dict[str, str] = {name: str(value) for name, value in request.GET.items() if value}
    offered = _OFFERED.get(chosen.get("state", ""), ())
    if not chosen.keys() <= _SHARED:
        return []
    filters = {"handler": chosen.get("handler", ""), "topic": chosen.get("topic", "")}
    return [
        (label, job_url(model_admin, verb, **filters))
        for verb, label in offered
        if model_admin.has_app_permission(request, permission_of(verb))
    ]

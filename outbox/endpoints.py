"""Endpoints for monitors: is this process alive, and is the outbox well?"""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from outbox.conf import get_settings
from outbox.operations.health_record import health_record
from outbox.operations.health_report import Health, Verdict
from outbox.operations.recent_health import RecentHealth, worst_verdict

SERVICE_UNAVAILABLE = 503

recent_health = RecentHealth()


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Answer 200 if this process answers at all; no database is asked."""
    return JsonResponse({"status": "alive"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Answer with the verdict: 200, or 503 if there is trouble.

    Users with the permission `OUTBOX["HEALTH_PERMISSION"]` see the whole report of each database.
    """
    reports = recent_health.get_all()
    verdict = worst_verdict(reports)
    answer: dict[str, Any] = {"verdict": verdict}
    if _may_see_details(request):
        answer["databases"] = {alias: _record(alias, report) for alias, report in reports.items()}
    return JsonResponse(answer, status=SERVICE_UNAVAILABLE if verdict == Verdict.TROUBLE else 200)


def _may_see_details(request: HttpRequest) -> bool:
    permission = get_settings().health_permission
    user = getattr(request, "user", None)  # a project may have no authentication
    return not permission or (user is not None and user.has_perm(permission))


def _record(database: str, report: Health | Exception) -> dict[str, Any]:
    if isinstance(report, Health):
        return health_record(report)
    sentence = f"Trouble: database {database!r} does not answer: {str(report).strip()}"
    return {"database": database, "verdict": Verdict.TROUBLE, "sentence": sentence}

"""The endpoint for Prometheus in a Django project."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from .collector import OutboxCollector

UNAUTHORIZED, SERVICE_UNAVAILABLE = 401, 503


def metrics_view(*, token: str = "") -> Callable[[HttpRequest], HttpResponse]:
    """Return a view of the outbox's metrics: `path("metrics", metrics_view(token=…))`.

    Args:
        token: the bearer token that Prometheus must send (`authorization: credentials`); empty for none, if
            only Prometheus can reach the path.
    """

    @never_cache
    @require_safe
    def metrics(request: HttpRequest) -> HttpResponse:
        sent = request.headers.get("Authorization", "")
        if token and not constant_time_compare(sent, f"Bearer {token}"):
            return HttpResponse(status=UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})
        try:
            exposition = generate_latest(registry())
        except TimeoutError as error:
            return HttpResponse(str(error), content_type="text/plain", status=SERVICE_UNAVAILABLE)
        return HttpResponse(exposition, content_type=CONTENT_TYPE_LATEST)

    return metrics


@cache
def registry() -> CollectorRegistry:
    """Return a registry of the outbox's metrics alone, the same for the whole process."""
    found = CollectorRegistry()
    found.register(OutboxCollector())
    return found

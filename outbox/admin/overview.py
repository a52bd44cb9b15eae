"""The overview: whether all is well, and the cause and the repair if not."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext_lazy as _

from outbox.models import BacklogSample, Delivery
from outbox.operations.doctor import Severity, examine

from . import formatting
from .base import OutboxAdmin
from .overview_context import PERIODS, live_context
from .overview_search import SEARCH_PLACES, find_hits
from .panel import install_panel

# The page refreshes this often.
REFRESH_S = 10

install_panel()


@admin.register(BacklogSample)
class BacklogSampleAdmin(OutboxAdmin):
    """The overview of the outbox; the samples of the backlog have no page of their own."""

    def get_urls(self) -> list[Any]:
        """Return the page, under the name that the admin's index links too, and its search."""
        view = self.admin_site.admin_view(self.changelist_view)
        return [
            path("", view, name="outbox_overview"),
            path("", view, name="outbox_backlogsample_changelist"),
            path("doctor/", self.admin_site.admin_view(self.doctor_view), name="outbox_doctor"),
            path("search/", self.admin_site.admin_view(self.search_view), name="outbox_overview_search"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the overview, or with `part=live` only its figures, for a refresh."""
        self._require_permission(request)
        is_refresh = request.GET.get("part") == "live"
        context = {
            "title": _("Overview"),
            "breadcrumbs": [],
            "refresh_s": REFRESH_S,
            "places": SEARCH_PLACES,
            "doctor_url": self.url("doctor"),
            "search_period": PERIODS[1],
            **live_context(self, request, router.db_for_read(Delivery)),
            **(extra_context or {}),
        }
        template = "live" if is_refresh else "page"
        shared = self.page_context(request, **context)
        response = TemplateResponse(request, f"admin/outbox/overview/{template}.html", shared)
        response["Cache-Control"] = "no-store"
        return response

    def search_view(self, request: HttpRequest) -> HttpResponse:
        """Redirect to the only match, or show all matches; a POST, since payloads may hold secrets."""
        self._require_permission(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        search = find_hits(self, request, router.db_for_read(Delivery))
        if len(search.hits) == 1 and search.is_exact:
            return HttpResponseRedirect(search.hits[0].url)
        context = self.page_context(
            request,
            title=_("Search"),
            breadcrumbs=[(self.url("overview"), _("Overview"))],
            search=search,
            search_url=self.url("overview_search"),
            places=SEARCH_PLACES,
            periods=PERIODS,
            search_period=search.period,
        )
        return TemplateResponse(request, "admin/outbox/overview/results.html", context)

    def doctor_view(self, request: HttpRequest) -> HttpResponse:
        """Examine the running system, and show each finding with its remedy."""
        self._require_permission(request)
        colours = {Severity.ERROR: "failed", Severity.WARNING: "pending", Severity.INFO: "discarded"}
        findings = [
            {"finding": one, "badge": formatting.badge(colours[one.severity], one.severity)}
            for one in examine(router.db_for_read(Delivery))
        ]
        context = self.page_context(
            request,
            title=_("Doctor"),
            breadcrumbs=[(self.url("overview"), _("Overview"))],
            findings=findings,
        )
        return TemplateResponse(request, "admin/outbox/overview/doctor.html", context)

    def _require_permission(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

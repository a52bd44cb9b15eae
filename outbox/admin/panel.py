"""The panel of the admin's home page: the verdict on the outbox, with a link to the overview."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import DatabaseError, router, transaction
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from outbox.models import BacklogSample, Delivery
from outbox.operations.health import get_health

from . import formatting

TEMPLATE = "admin/outbox/index.html"


def install_panel() -> None:
    """Show the panel on the home page of the default admin site, unless it has a template of its own."""
    if admin.site.index_template is None:
        admin.site.index_template = TEMPLATE


def panel_context(request: HttpRequest) -> dict[str, Any]:
    """Return the template context of the panel.

    It is empty for users who may not view the overview, and on a site without the overview.
    """
    opts = BacklogSample._meta
    if not request.user.has_perm(f"{opts.app_label}.view_{opts.model_name}"):
        return {}
    site = getattr(getattr(request, "resolver_match", None), "namespace", None)
    try:
        context = {"overview_url": reverse("admin:outbox_overview", current_app=site)}
    except NoReverseMatch:
        return {}
    database = router.db_for_read(Delivery)
    try:
        # Within a savepoint, so that an error leaves the transaction of the request usable.
        with transaction.atomic(using=database):
            health = get_health(database)
    except DatabaseError as error:
        # The home page must open without the tables of the outbox; the panel shows the error.
        return {**context, "error": error}
    return {**context, "health": health, "measured_at": formatting.timestamp(health.measured_at)}

"""Template tags of the admin pages: numbers, durations, and the panel of the admin's home page."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import RequestContext

from outbox.admin.formatting import dotted, number
from outbox.admin.panel import panel_context
from outbox.durations import format_duration

register = template.Library()

register.filter("grouped", number)
register.filter("duration", format_duration)
register.filter("dotted", dotted)


@register.inclusion_tag("admin/outbox/panel.html", takes_context=True)
def outbox_panel(context: RequestContext) -> dict[str, Any]:
    """Show the verdict on the outbox, to users who may view the overview."""
    return panel_context(context["request"])

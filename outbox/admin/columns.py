"""What lists and pages say about one delivery, from its own row."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from ..models import Delivery
from . import display


@admin.display(description=_("state"))
def state(delivery: Delivery) -> SafeString:
    """Show the state in its colour."""
    return display.badge(delivery.status)


@admin.display(description=_("state"))
def progress(delivery: Delivery) -> SafeString:
    """Show the state, and how many attempts it took to get there."""
    tries = ngettext("%d attempt", "%d attempts", delivery.attempts) % delivery.attempts
    lines = [tries] if delivery.attempts else []
    if delivery.redeliveries:
        lines.append(_now("%d redelivered") % delivery.redeliveries)
    small = format_html_join("", "<br><small>{}</small>", [(line,) for line in lines])
    return format_html("{}{}", state(delivery), small)


@admin.display(description=_("attempts"))
def tries(delivery: Delivery) -> SafeString | str:
    """Show how often it was dispatched, how often of that again, and what went wrong with it."""
    more = []
    if delivery.redeliveries:
        more.append((_now("%d redelivered") % delivery.redeliveries,))
    if delivery.refusals:
        more.append((_now("%d refused by the broker") % delivery.refusals,))
    if crashes := delivery.crashes:
        more.append((ngettext("%d worker crashed", "%d workers crashed", crashes) % crashes,))
    details = format_html_join("", "<br><small>{}</small>", more)
    return format_html("{}{}", delivery.attempts, details)


@admin.display(description=_("last change"))
def last_change(delivery: Delivery) -> SafeString:
    """Show since when it has been in its state, or when it is due."""
    if delivery.status == Delivery.Status.PENDING:
        due = format_html("{}<br>{}", _now("due"), display.moment(delivery.available_at))
        return format_html("{} {}", _now("waits"), delivery.get_held_display()) if delivery.held else due
    return format_html("{}", display.moment(delivery.finished_at or delivery.dispatched_at))


@admin.display(description=_("error"))
def error_summary(delivery: Any) -> SafeString | str:
    """Show the line that says most: a reason comes first, an exception last."""
    if delivery.status == Delivery.Status.DISCARDED:
        return display.dotted(display.first_line(delivery.error_head))
    line = display.dotted(display.last_line(delivery.error_tail))
    if not line or delivery.status == Delivery.Status.FAILED:
        return line
    return format_html('<span class="quiet">{}</span> {}', _now("last error:"), line)


@admin.display(description=_("error"))
def full_error(delivery: Delivery) -> Any:
    """Show the error with its traceback."""
    return display.traceback(delivery.error)


@admin.display(description=_("last error"))
def last_error(delivery: Delivery) -> Any:
    """Show the error of an earlier try."""
    return display.traceback(delivery.error)

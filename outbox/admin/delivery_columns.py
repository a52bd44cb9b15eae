"""Columns and fields that need only the row of a delivery and its event."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from outbox.models import Delivery

from . import formatting
from .formatting import number

NO_EVENT = _("the event no longer exists")


@admin.display(description=_("published"))
def published(delivery: Delivery) -> Any:
    """Show when the event was published."""
    event = getattr(delivery, "event", None)
    return formatting.timestamp(event.created_at if event else None)


@admin.display(description=_("payload"))
def payload(delivery: Delivery) -> Any:
    """Show the payload of the event."""
    event = getattr(delivery, "event", None)
    return formatting.pretty_json(event.payload) if event else str(NO_EVENT)


@admin.display(description=_("state"))
def state_badge(delivery: Delivery) -> SafeString:
    """Show the state in its colour."""
    return formatting.badge(delivery.state)


@admin.display(description=_("state"))
def state_and_attempts(delivery: Delivery) -> SafeString:
    """Show the state and the number of dispatches, redeliveries and resends."""
    # `attempts` counts the messages to the broker, not the runs.
    dispatches = ngettext("%s dispatch", "%s dispatches", delivery.attempts) % number(delivery.attempts)
    lines = [dispatches] if delivery.attempts else []
    return format_html("{}{}", state_badge(delivery), _small([*lines, *_repetitions(delivery)]))


@admin.display(description=_("dispatches"))
def attempt_counts(delivery: Delivery) -> SafeString | str:
    """Show the number of dispatches, redeliveries, resends, refusals and crashes."""
    details = _repetitions(delivery)
    if delivery.refusals:
        details.append(_now("%s refused by the broker") % number(delivery.refusals))
    if crashes := delivery.crashes:
        details.append(ngettext("%s worker crashed", "%s workers crashed", crashes) % number(crashes))
    return format_html("{}{}", number(delivery.attempts), _small(details))


def _repetitions(delivery: Delivery) -> list[str]:
    counts = (
        (_now("%s redelivered"), delivery.redeliveries),
        (_now("%s resent"), delivery.resends),
    )
    return [text % number(count) for text, count in counts if count]


def _small(lines: list[str]) -> SafeString:
    return format_html_join("", "<br><small>{}</small>", [(line,) for line in lines])


@admin.display(description=_("last change"))
def last_change(delivery: Delivery) -> SafeString:
    """Show the time of the last change; for a pending delivery, its due time or its condition."""
    if delivery.state != Delivery.State.PENDING:
        return format_html("{}", formatting.timestamp(delivery.finished_at or delivery.dispatched_at))
    if delivery.waits_for:
        return format_html("{} {}", _now("waits"), delivery.get_waits_for_display())
    return format_html("{}<br>{}", _now("due"), formatting.timestamp(delivery.available_at))


@admin.display(description=_("error"))
def error_summary(delivery: Any) -> SafeString | str:
    """Show the first line of a reason, or the last line of a traceback."""
    if delivery.state == Delivery.State.DISCARDED:
        return formatting.dotted(formatting.first_line(delivery.error_head))
    line = formatting.dotted(formatting.last_line(delivery.error_tail))
    if not line or delivery.state == Delivery.State.FAILED:
        return line
    return format_html('<span class="quiet">{}</span> {}', _now("last error:"), line)


@admin.display(description=_("error"))
def full_error(delivery: Delivery) -> Any:
    """Show the error with its traceback."""
    return formatting.traceback(delivery.error)


@admin.display(description=_("last error"))
def last_error(delivery: Delivery) -> Any:
    """Show the error of an earlier attempt."""
    return formatting.traceback(delivery.error)


TIMES = (
    formatting.timestamp_column("available_at", _("available")),
    formatting.timestamp_column("expires_at", _("expires")),
    formatting.timestamp_column("dispatched_at", _("dispatched")),
    formatting.timestamp_column("confirm_by", _("confirm by")),
    formatting.timestamp_column("finished_at", _("finished")),
)

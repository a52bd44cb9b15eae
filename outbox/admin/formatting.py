"""Format values as HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db import router
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from outbox.models import Delivery
from outbox.models.clock import to_aware

EMPTY = "-"

# Characters of either end of an error that are read for its first or last line.
ERROR_END = 400
_SUMMARY = 120


def timestamp(value: datetime | None) -> SafeString | str:
    """Return a time with its seconds, in the current time zone, with the name of the zone."""
    if value is None:
        return EMPTY
    local = in_zone(value)
    html = '<time class="outbox-time" datetime="{}">{} <span class="outbox-zone">{}</span></time>'
    return format_html(html, local.isoformat(), f"{local:%Y-%m-%d %H:%M:%S}", local.tzname())


def in_zone(value: datetime) -> datetime:
    """Return a time of the tables in the current time zone; with USE_TZ off, its column is naive."""
    return timezone.localtime(to_aware(value, router.db_for_read(Delivery)))


def number(value: float, decimals: int = 0) -> str:
    """Return a number with the separators of the current language."""
    return number_format(value, decimals, force_grouping=True)


def limited(count: int, limit: int) -> str:
    """Return a count that stops at a limit, with a plus sign there."""
    return f"{number(count)}+" if count >= limit else number(count)


def timestamp_column(name: str, description: Any) -> Callable[[Any], SafeString | str]:
    """Return an admin column that shows the time in a field."""

    @admin.display(description=description)
    def column(row: Any) -> SafeString | str:
        return timestamp(getattr(row, name))

    column.__name__ = name
    return column


def badge(state: str, text: Any = None) -> SafeString:
    """Return a state, or a text about it, in the colours of the state."""
    label = text if text is not None else dict(Delivery.State.choices).get(state, state)
    return format_html('<span class="outbox-badge outbox-{}">{}</span>', state, label)


def dotted(name: str) -> SafeString:
    """Return a dotted name that may break after its dots, and nowhere else."""
    parts = re.split(r"(?<=\.)", name)
    return format_html_join(mark_safe("<wbr>"), "{}", [(part,) for part in parts])


def pretty_json(value: Any) -> SafeString:
    """Return indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return format_html('<pre class="outbox-pre">{}</pre>', text)


def traceback(text: str) -> SafeString | str:
    """Return an error with its line breaks."""
    return format_html('<pre class="outbox-pre outbox-error">{}</pre>', text) if text else EMPTY


def first_line(text: str) -> str:
    """Return the first line of a text, shortened."""
    return _shortened(text.strip().partition("\n")[0])


def last_line(text: str) -> str:
    """Return the last line of a text, shortened."""
    return _shortened(text.strip().rpartition("\n")[2].strip())


def _shortened(line: str) -> str:
    return line if len(line) <= _SUMMARY else f"{line[: _SUMMARY - 1]}…"


def link(url: str, text: Any) -> SafeString:
    """Return a link."""
    return format_html('<a href="{}">{}</a>', url, text)

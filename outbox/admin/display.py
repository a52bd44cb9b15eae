"""Values as people read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from ..models import Delivery

NOTHING = "-"

# The first line of a reason and the last one of a traceback say most; this much of either end holds them.
ERROR_END = 400
_SUMMARY = 120


def moment(value: datetime | None) -> SafeString | str:
    """Return a time with its seconds, in the current time zone."""
    if value is None:
        return NOTHING
    local = timezone.localtime(value) if timezone.is_aware(value) else value
    text = local.strftime("%Y-%m-%d %H:%M:%S")
    return format_html('<time class="outbox-time" datetime="{}">{}</time>', value.isoformat(), text)


def moment_of(name: str, description: Any) -> Callable[[Any], SafeString | str]:
    """Return a column of the admin that shows a time."""

    @admin.display(description=description)
    def column(row: Any) -> SafeString | str:
        return moment(getattr(row, name))

    column.__name__ = name
    return column


def badge(status: str, text: Any = None) -> SafeString:
    """Return a state, or a text about it, in the state's colours."""
    label = text if text is not None else dict(Delivery.Status.choices).get(status, status)
    return format_html('<span class="outbox-badge outbox-{}">{}</span>', status, label)


def dotted(name: str) -> SafeString:
    """Return a dotted name that may break after its dots, and nowhere else."""
    parts = re.split(r"(?<=\.)", name)
    return format_html_join(mark_safe("<wbr>"), "{}", [(part,) for part in parts])


def pretty_json(value: Any) -> SafeString:
    """Return JSON, indented."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return format_html('<pre class="outbox-pre">{}</pre>', text)


def traceback(text: str) -> SafeString | str:
    """Return an error with its line breaks."""
    return format_html('<pre class="outbox-pre outbox-error">{}</pre>', text) if text else NOTHING


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

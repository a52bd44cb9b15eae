"""The last actions of operators, from the admin's log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from . import formatting

# Entries that are read for the last actions: an action on many rows has an entry for each of them.
_ENTRIES_LIMIT = 2000


@dataclass(frozen=True)
class RecentAction:
    """One action on one row or several.

    Args:
        rows: the name of the row, or the number of rows.
        key: identifies the action while the page refreshes.
    """

    at: SafeString | str
    user: str
    rows: str
    message: str
    key: int


def recent_actions(limit: int) -> list[RecentAction]:
    """Return the last actions on the tables of the outbox, the newest first."""
    actions = _actions()
    return [action for action, _number in zip(actions, range(limit), strict=False)]


def _actions() -> Iterator[RecentAction]:
    types = ContentType.objects.filter(app_label="outbox").values("pk")
    entries = LogEntry.objects.filter(content_type__in=types).order_by("-pk").select_related("user")
    for _same, group in groupby(entries[:_ENTRIES_LIMIT], key=_identity):
        first, *others = group
        count = len(others) + 1
        rows = ngettext("%s row", "%s rows", count) % formatting.limited(count, _ENTRIES_LIMIT)
        yield RecentAction(
            at=formatting.timestamp(first.action_time),
            user=first.user.get_username(),
            rows=first.object_repr if not others else rows,
            message=first.get_change_message(),
            key=first.pk,
        )


def _identity(entry: LogEntry) -> tuple[Any, ...]:
    # The entries of one action have nearly the same time.
    minute = entry.action_time.replace(second=0, microsecond=0)
    return (entry.user_id, entry.content_type_id, entry.change_message, minute)

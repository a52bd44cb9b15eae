"""Why a value cannot travel, and what to pass instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.files import File
from django.db.models import QuerySet
from django.http import HttpRequest

_CONVERT = (
    "convert it to a supported type, such as str, int, list, dict, a dataclass or a saved model instance"
)

_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (QuerySet, "pass list(queryset), or the list of its primary keys"),
    (HttpRequest, "pass what the receiver needs of the request, such as request.path or request.user"),
    (File, "pass its name or its bytes"),
    ((bytearray, memoryview), "pass bytes(value)"),
    (dict, "pass dict(value)"),
    ((list, tuple, set, frozenset, range), "pass list(value)"),
)


class Refused(Exception):
    """Raised for a value that cannot travel; containers add their steps of the path on its way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


def remedy(value: Any) -> str:
    """Return what to pass instead of `value`."""
    found = next((remedy for types, remedy in _REMEDIES if isinstance(value, types)), None)
    if found is None and isinstance(value, Iterable) and not callable(value):
        return "pass list(value)"
    return found or _CONVERT

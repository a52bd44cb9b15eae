"""Values that cannot be encoded, and their replacements."""

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
    (HttpRequest, "pass the values that the receiver needs, such as request.path or request.user"),
    (File, "pass its name or its bytes"),
    ((bytearray, memoryview), "pass bytes(value)"),
    (dict, "pass dict(value)"),
    ((list, tuple, set, frozenset, range), "pass list(value)"),
)


class Refused(Exception):
    """Raised for a value that cannot be encoded; each container adds its step of the path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


def remedy(value: Any) -> str:
    """Return the advice for the caller, such as `pass list(value)`."""
    found = next((remedy for types, remedy in _REMEDIES if isinstance(value, types)), None)
    if found is None and isinstance(value, Iterable) and not callable(value):
        return "pass list(value)"
    return found or _CONVERT

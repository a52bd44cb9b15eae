"""Strict JSON text: a value is stored without loss, or refused with the path to its fault."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from enum import Enum
from math import isfinite
from types import NoneType
from typing import Any, NoReturn
from uuid import UUID

from django.db.models import Model, QuerySet
from django.utils.functional import Promise

from outbox.errors import InvalidPayload

# A fixed limit, since Python's own depends on its version and on the depth of the caller.
MAX_DEPTH = 200
_MAX_PATH = 200
_CONTAINERS = (dict, list, tuple)
_PLAIN = frozenset({str, int, float, bool, NoneType})

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (Model, "pass its primary key"),
    (QuerySet, "pass a list of plain values"),
    (Enum, "pass its .value"),
    ((date, time), "pass value.isoformat()"),
    ((Decimal, UUID, Promise), "pass str(value)"),
    ((set, frozenset), "pass sorted(value)"),
    ((bytes, bytearray, memoryview), "pass text, such as base64"),
)


def dump_json(value: Any, *, path: str = "payload") -> str:
    """Return `value` as JSON text that PostgreSQL's jsonb accepts. Tuples become arrays.

    Raises:
        InvalidPayload: with the path of a value that JSON cannot represent.
    """
    try:
        text = _encode(value)
        if isinstance(value, _CONTAINERS):
            _check_keys(value, 1)
        # A NUL is always escaped. An escaped backslash before "u0000" is a false alarm: it passes the check.
        if r"\u0000" in text:
            _check(value, path)
        if not text.isascii():
            text.encode()
    except InvalidPayload:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        _explain(value, path, error)
    return text


def text_fault(text: str) -> str | None:
    """Return why PostgreSQL would refuse `text`, or None."""
    if "\0" in text:
        return "it holds a NUL character, which PostgreSQL cannot store; remove it"
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return "it holds a lone surrogate, which UTF-8 cannot encode; decode the text properly first"
    return None


def _check_keys(value: Any, depth: int) -> None:
    # json.dumps turns the key 1 into "1" silently. str.join refuses all other types at the speed of C.
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        "".join(value)
        value = value.values()
    for item in value:
        # Most items are plain, and a look-up of the type takes half the time of isinstance().
        if type(item) not in _PLAIN and isinstance(item, _CONTAINERS):
            _check_keys(item, depth + 1)


def _explain(value: Any, path: str, error: Exception) -> NoReturn:
    _check(value, path)
    raise InvalidPayload(path, f"JSON refuses it: {error}") from error


def _check(value: Any, path: str, above: tuple[int, ...] = ()) -> None:
    """Raise for the first fault in `value`, whose containers have the ids `above`."""
    if reason := _fault(value, above):
        raise InvalidPayload(_shortened(path), reason)
    for step, item in _items(value):
        _check(item, path + step, (*above, id(value)))


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((f"[{key!r}]", item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ((f"[{index}]", item) for index, item in enumerate(value))
    return iter(())


def _fault(value: Any, above: tuple[int, ...]) -> str | None:
    if value is None or isinstance(value, int):
        return None
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, float):
        return None if isfinite(value) else f"{value!r} is not JSON; pass None or a string"
    if not isinstance(value, _CONTAINERS):
        return f"{type(value).__name__} is not JSON; {_remedy(value)}"
    return _container_fault(value, above)


def _container_fault(value: Any, above: tuple[int, ...]) -> str | None:
    if id(value) in above:
        return "it contains itself; pass a tree"
    if len(above) >= MAX_DEPTH:
        return f"it is nested more than {MAX_DEPTH} levels deep; flatten it"
    if isinstance(value, dict):
        return next(filter(None, map(_key_fault, value)), None)
    return None


def _key_fault(key: Any) -> str | None:
    if not isinstance(key, str):
        return f"the key {key!r} is of type {type(key).__name__}; JSON keys are strings, pass str(key)"
    return (reason := text_fault(key)) and f"in the key {key!r}: {reason}"


def _remedy(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "pass dataclasses.asdict(value)"
    known = (remedy for types, remedy in _REMEDIES if isinstance(value, types))
    return next(known, "convert it to dict, list, str, int, float, bool or None")


def _shortened(path: str) -> str:
    return path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}…"

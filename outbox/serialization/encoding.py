"""The encoding of Python values to typed JSON."""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from math import copysign, isfinite
from types import NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db.models import Model
from django.utils.functional import LazyObject, Promise, empty

from outbox.errors import UnserializableArgument

from . import classes, instances
from .json import text_fault
from .refusals import Refused, remedy

TAG = "$"
# One level of Python values has at most three levels in JSON, whose own limit must not be reached first.
MAX_DEPTH = 50


def encode_arguments(arguments: Mapping[str, Any], *, signal: str, snapshot: bool = False) -> dict[str, Any]:
    """Return the arguments of a signal as data for JSON; `decode_arguments()` decodes them.

    Args:
        snapshot: whether saved instances are encoded with their field values, instead of as references.

    Raises:
        UnserializableArgument: with the signal, the argument, the type and the remedy.
    """
    return {
        name: encode_value(value, signal=signal, path=name, snapshot=snapshot)
        for name, value in arguments.items()
    }


def encode_value(value: Any, *, signal: str, path: str, snapshot: bool = False) -> Any:
    """Return one value as data for JSON.

    Raises:
        UnserializableArgument: as `encode_arguments()` does.
    """
    if type(value) in _PLAIN:
        return value
    try:
        return _Encoder(snapshot).encode(value)
    except Refused as refused:
        whole = path + "".join(reversed(refused.steps))
        raise UnserializableArgument(signal, whole, refused.reason) from refused.__cause__


class _Encoder:
    def __init__(self, snapshot: bool) -> None:
        self.snapshot = snapshot
        self.depth = 0

    def encode(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        return (_BY_TYPE.get(type(value)) or _by_kind(value))(self, value)

    def step(self, step: str, value: Any) -> Any:
        """Encode an item of a container.

        Args:
            step: the item's part of the path, such as `[3]`.
            value: the item.
        """
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise Refused(
                    f"it is nested more than {MAX_DEPTH} levels deep or contains itself; flatten it"
                )
            return self.encode(value)
        except Refused as refused:
            refused.steps.append(step)
            raise
        finally:
            self.depth -= 1

    def items(self, values: Iterable[Any]) -> list[Any]:
        return [self.step(f"[{index}]", value) for index, value in enumerate(values)]

    def text(self, value: str) -> str:
        if reason := text_fault(value):
            raise Refused(reason)
        return str.__str__(value)

    def integer(self, value: int) -> int:
        return int.__int__(value)

    def number(self, value: float) -> Any:
        text = float.__repr__(value)
        # jsonb stores a numeric: 1e+16 would come back as an int, and -0.0 without its sign.
        if not isfinite(value) or "e" in text or (value == 0 and copysign(1, value) < 0):
            return tagged("float", text)
        return float.__float__(value)

    def mapping(self, value: dict[Any, Any]) -> Any:
        if type(value) is dict and TAG not in value and all(type(key) is str for key in value):
            return {self.text(key): self.step(f"[{key!r}]", item) for key, item in value.items()}
        pairs = [
            [self.step(f".key({key!r})", key), self.step(f"[{key!r}]", item)] for key, item in value.items()
        ]
        return tagged("dict", pairs)

    def elements(self, kind: str, value: Iterable[Any]) -> Any:
        return tagged(kind, [self.step("{…}", item) for item in value])

    def moment(self, kind: str, value: Any) -> Any:
        extra: dict[str, Any] = {"fold": 1} if value.fold else {}
        if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
            extra["zone"] = value.tzinfo.key
        return tagged(kind, value.isoformat(), **extra)

    def enum(self, value: Enum) -> Any:
        # A combination of flags has no name.
        if isinstance(value, Flag):
            return tagged("flag", value.value, path=class_path(type(value)))
        return tagged("enum", value.name, path=class_path(type(value)))

    def dataclass(self, value: Any) -> Any:
        try:
            object.__new__(type(value))
        except TypeError as error:
            raise Refused(f"{error}; pass a dataclass that derives from no built-in type") from error
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        items = {name: self.step(f".{name}", getattr(value, name)) for name in names}
        return tagged("dataclass", items, path=class_path(type(value)))

    def namedtuple(self, value: tuple[Any, ...]) -> Any:
        return tagged("namedtuple", self.items(value), path=class_path(type(value)))

    def cls(self, value: type) -> Any:
        if issubclass(value, Model) and not value._meta.abstract:
            return tagged("class", value._meta.label)
        return tagged("type", class_path(value))

    def lazy(self, value: Any) -> Any:
        if value._wrapped is empty:
            value._setup()
        return self.encode(value._wrapped)

    def model(self, value: Model) -> Any:
        if self.snapshot or value._state.adding or value.pk is None:
            return {TAG: "instance", **instances.snapshot(value, self.field)}
        return {TAG: "model", **instances.reference(value, self.encode)}

    def field(self, field: Any, value: Any, instance: Model) -> Any:
        """Encode the value of a field, with the field's serialization if the type of the value is unknown."""
        try:
            if hasattr(value, "resolve_expression"):
                raise Refused("it holds a database expression; call refresh_from_db() before sending")
            return self.encode(value)
        except Refused as refused:
            if (text := _field_text(field, value, instance)) is not None:
                return tagged("field", text)
            refused.steps.append(f".{field.attname}")
            raise


def _field_text(field: Any, value: Any, instance: Model) -> str | None:
    """Return the text that Django's serializers write, if the field reads an equal value from the text."""
    try:
        text = field.value_to_string(instance)
        same = isinstance(text, str) and text_fault(text) is None and field.to_python(text) == value
    except (ValidationError, TypeError, ValueError, AttributeError):
        return None
    return text if same else None


def tagged(kind: str, value: Any, **extra: Any) -> dict[str, Any]:
    """Return the JSON object for a value of this kind."""
    return {TAG: kind, "v": value, **extra}


def class_path(cls: type) -> str:
    """Return the name under which another process finds a class, or refuse the class."""
    try:
        return classes.path_of(cls)
    except LookupError as error:
        raise Refused(f"{error}; define it at the top level of a module") from error


_Encode = Callable[[_Encoder, Any], Any]

_PLAIN = frozenset({NoneType, bool, int})

_BY_TYPE: dict[type, _Encode] = {
    str: _Encoder.text,
    float: _Encoder.number,
    dict: _Encoder.mapping,
    OrderedDict: _Encoder.mapping,
    list: _Encoder.items,
    tuple: lambda self, value: tagged("tuple", self.items(value)),
    set: lambda self, value: self.elements("set", value),
    frozenset: lambda self, value: self.elements("frozenset", value),
    Decimal: lambda self, value: tagged("decimal", str(value)),
    datetime: lambda self, value: self.moment("datetime", value),
    date: lambda self, value: tagged("date", value.isoformat()),
    time: lambda self, value: self.moment("time", value),
    timedelta: lambda self, value: tagged("timedelta", [value.days, value.seconds, value.microseconds]),
    UUID: lambda self, value: tagged("uuid", str(value)),
    bytes: lambda self, value: tagged("bytes", b64encode(value).decode("ascii")),
}

# For subclasses: the first base class that fits. They are decoded as instances of the base class.
_BY_KIND: tuple[tuple[type, _Encode], ...] = (
    (LazyObject, _Encoder.lazy),
    (Promise, lambda self, value: self.text(str(value))),
    (Enum, _Encoder.enum),
    (Model, _Encoder.model),
    (type, _Encoder.cls),
    (str, _Encoder.text),
    (int, _Encoder.integer),
    (float, _Encoder.number),
    *((kind, _BY_TYPE[kind]) for kind in (Decimal, datetime, date, time, timedelta, UUID, bytes)),
)


def _by_kind(value: Any) -> _Encode:
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return _Encoder.namedtuple
    # type(value) instead of isinstance(), since a lazy object claims to have the class of its wrapped object.
    if dataclasses.is_dataclass(type(value)) and not isinstance(value, Enum):
        return _Encoder.dataclass
    return next((encode for kind, encode in _BY_KIND if issubclass(type(value), kind)), _refuse)


def _refuse(encoder: _Encoder, value: Any) -> Any:
    raise Refused(f"{type(value).__name__} cannot be sent to a worker; {remedy(value)}")

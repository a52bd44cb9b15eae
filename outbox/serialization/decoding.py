"""The decoding of typed JSON to Python values."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from typing import Any, Literal, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from django.apps import apps
from django.core.exceptions import ValidationError

from outbox.errors import InstanceMissing, InvalidPayload, OutboxError

from . import classes, instances
from .encoding import TAG

Missing = Literal["discard", "fail", "pass"]

_UNDECODABLE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, ValidationError)


def decode_arguments(data: Mapping[str, Any], *, missing: Missing = "discard") -> dict[str, Any]:
    """Return the arguments that `encode_arguments()` encoded; fetch their instances with one query per model.

    Args:
        missing: `"pass"` replaces an instance that no longer exists by None.

    Raises:
        InstanceMissing: if an instance no longer exists, unless `missing` is `"pass"`.
        InvalidPayload: for data that this process cannot decode, such as a class that was renamed since.
    """
    result = decode_many([data], missing=missing)[0]
    if isinstance(result, OutboxError):
        raise result
    return result


def decode_many(
    items: Sequence[Mapping[str, Any]], *, missing: Missing = "discard"
) -> list[dict[str, Any] | OutboxError]:
    """Decode many sets of arguments, and fetch the instances of all sets together.

    Items that refer to the same row share one instance.

    Returns:
        In the order of `items`, the arguments or the error that `decode_arguments()` would raise.
    """
    references = _References()
    for item in items:
        references.add_all(item)
    decoder = _Decoder(instances.fetch(references.found), missing)
    return [decoder.arguments(item) for item in items]


def decode_value(data: Any, *, path: str = "value", missing: Missing = "discard") -> Any:
    """Return the value that `encode_value()` encoded.

    Raises:
        InstanceMissing: as `decode_arguments()` does.
        InvalidPayload: as `decode_arguments()` does.
    """
    return decode_arguments({path: data}, missing=missing)[path]


class _References:
    """The references to instances; malformed references are left to the decoder, which reports them."""

    def __init__(self) -> None:
        self.found: set[instances.Reference] = set()

    def add_all(self, data: Any) -> None:
        for found in _tagged_models(data):
            try:
                self.found.add(instances.reference_of(found, _Decoder({}, "fail").decode))
            except (*_UNDECODABLE, OutboxError):
                continue


def _tagged_models(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        if data.get(TAG) == "model":
            yield data
        data = data.values()
    elif not isinstance(data, list):
        return
    for item in data:
        yield from _tagged_models(item)


class _Decoder:
    def __init__(self, fetched: instances.Fetched, missing: Missing) -> None:
        self.fetched = fetched
        self.missing = missing

    def arguments(self, data: Mapping[str, Any]) -> dict[str, Any] | OutboxError:
        """Return the arguments, or the first error."""
        arguments = {}
        for name, value in data.items():
            try:
                arguments[name] = self.decode(value)
            except OutboxError as error:
                return error
            except _UNDECODABLE as error:
                return InvalidPayload(name, f"it cannot be decoded here: {error}")
        return arguments

    def decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, Mapping):
            return data
        if TAG in data:
            if data[TAG] not in _BY_TAG:
                raise LookupError(f"{data[TAG]!r} is an unknown kind of value")
            return _BY_TAG[data[TAG]](self, data)
        return {key: self.decode(value) for key, value in data.items()}

    def values(self, data: Mapping[str, Any]) -> Iterable[Any]:
        return map(self.decode, data["v"])

    def moment(self, data: Mapping[str, Any], moment: Any) -> Any:
        plain = moment.replace(fold=data.get("fold", 0))
        if "zone" not in data:
            return plain
        zone = ZoneInfo(data["zone"])
        local = plain.replace(tzinfo=zone)
        # If the rules of the zone have changed since, the instant is kept and the local time changes.
        return local if local.utcoffset() == moment.utcoffset() else moment.astimezone(zone)

    def model(self, data: Mapping[str, Any]) -> Any:
        reference = instances.reference_of(data, self.decode)
        instance = self.fetched.get(reference)
        if instance is None and self.missing != "pass":
            raise InstanceMissing(data["model"], reference[2])
        return instance

    def instance(self, data: Mapping[str, Any]) -> Any:
        return instances.restore(data, self.field)

    def field(self, field: Any, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get(TAG) == "field":
            return field.to_python(data["v"])
        return self.decode(data)

    def enum(self, data: Mapping[str, Any]) -> Any:
        return cast(type[Enum], classes.find(data["path"], Enum)).__members__[data["v"]]

    def flag(self, data: Mapping[str, Any]) -> Any:
        return cast(type[Flag], classes.find(data["path"], Flag))(data["v"])

    def namedtuple(self, data: Mapping[str, Any]) -> Any:
        cls = cast(Any, classes.find(data["path"], tuple))
        values = tuple(self.values(data))
        if len(values) != len(cls._fields):
            raise ValueError(
                f"{data['path']!r} has {len(cls._fields)} fields now and had {len(values)} when sent"
            )
        return tuple.__new__(cls, values)

    def dataclass(self, data: Mapping[str, Any]) -> Any:
        cls = cast(Any, classes.find(data["path"]))
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{data['path']!r} is not a dataclass")
        stored = self.decode(data["v"])
        # Neither __init__ nor __post_init__ runs, so the object has the fields that it had, frozen or not.
        instance: Any = object.__new__(cast(type, cls))
        for field in dataclasses.fields(cls):
            object.__setattr__(instance, field.name, _field_value(field, stored))
        return instance


def _field_value(field: dataclasses.Field[Any], stored: Mapping[str, Any]) -> Any:
    if field.name in stored:
        return stored[field.name]
    # The field is newer than the event.
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ValueError(f"the new dataclass field {field.name!r} has no default")


_BY_TAG: dict[str, Callable[[_Decoder, Mapping[str, Any]], Any]] = {
    "dict": lambda self, data: {self.decode(key): self.decode(value) for key, value in data["v"]},
    "tuple": lambda self, data: tuple(self.values(data)),
    "set": lambda self, data: set(self.values(data)),
    "frozenset": lambda self, data: frozenset(self.values(data)),
    "float": lambda self, data: float(data["v"]),
    "decimal": lambda self, data: Decimal(data["v"]),
    "uuid": lambda self, data: UUID(data["v"]),
    "bytes": lambda self, data: b64decode(data["v"], validate=True),
    "date": lambda self, data: date.fromisoformat(data["v"]),
    "datetime": lambda self, data: self.moment(data, datetime.fromisoformat(data["v"])),
    "time": lambda self, data: self.moment(data, time.fromisoformat(data["v"])),
    "timedelta": lambda self, data: timedelta(*data["v"]),
    "class": lambda self, data: apps.get_model(data["v"]),
    "type": lambda self, data: classes.find(data["v"]),
    "enum": _Decoder.enum,
    "flag": _Decoder.flag,
    "namedtuple": _Decoder.namedtuple,
    "dataclass": _Decoder.dataclass,
    "model": _Decoder.model,
    "instance": _Decoder.instance,
}

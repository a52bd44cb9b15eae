"""The OUTBOX setting as one typed object, read when used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from os import PathLike, fspath
from typing import Any

from django.conf import settings as django_settings
from django.db import DEFAULT_DB_ALIAS

from .durations import LONGEST
from .errors import InvalidSetting, suggestion


@dataclass(frozen=True, kw_only=True)
class OutboxSettings:
    """The values of `settings.OUTBOX`, whose keys are these names in upper case.

    The setting gives a duration as a `timedelta` or in seconds.
    """

    batch_size: int = 500
    poll_interval: timedelta = timedelta(seconds=1)
    require_transaction: bool = True
    allow_test_transaction: bool = False
    atomic_saves: bool = True
    strict_sends: bool = False
    confirm_timeout: timedelta = timedelta(hours=1)
    max_redeliveries: int = 5
    max_crashes: int = 3
    crash_dir: str = ""
    max_dispatch_attempts: int = 10
    dispatch_timeout: timedelta = timedelta(seconds=10)
    max_payload_bytes: int = 256 * 1024
    retention: timedelta = timedelta(days=7)
    failed_retention: timedelta = timedelta(days=90)
    stats: bool = True
    listen: bool = True
    trusted_proxies: int = 0
    health_permission: str = "outbox.view_delivery"
    worker_probe_file: str = ""
    databases: tuple[str, ...] = (DEFAULT_DB_ALIAS,)


_DEFAULTS = OutboxSettings()
_NAMES = {field.name.upper(): field.name for field in fields(OutboxSettings)}
_POSITIVE = frozenset(
    {"BATCH_SIZE", "POLL_INTERVAL", "CONFIRM_TIMEOUT", "DISPATCH_TIMEOUT", "MAX_PAYLOAD_BYTES"}
)

# While the broker has a batch, its rows are locked, and sockets wait at most some weeks.
_LONGEST = {"DISPATCH_TIMEOUT": timedelta(days=1)}
# The largest value of the databases' integer parameters.
_LARGEST = 2**31 - 1

# The stubs have no OUTBOX setting.
_django: Any = django_settings

_cached: tuple[dict[str, Any], OutboxSettings] = ({}, _DEFAULTS)


def get_settings() -> OutboxSettings:
    """Return the current settings.

    Raises:
        InvalidSetting: for an unknown key or a value of the wrong type.
    """
    global _cached
    # Checked first, since the attempt to read a missing setting costs a tenth of a publish.
    raw = getattr(_django, "OUTBOX", {}) if _django.is_overridden("OUTBOX") else {}
    # To compare a small dict is far cheaper than to build the dataclass, and detects every change.
    if raw != _cached[0]:
        _cached = (dict(_mapping(raw)), _build(raw))
    return _cached[1]


def problems(raw: Mapping[str, Any]) -> list[str]:
    """Return all faults of an OUTBOX mapping, each with the offending value and the remedy."""
    found = []
    try:
        _mapping(raw)
    except InvalidSetting as error:
        return [str(error)]
    for key, value in raw.items():
        try:
            _convert(key, value)
        except InvalidSetting as error:
            found.append(str(error))
    return found


def _mapping(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise InvalidSetting(f"OUTBOX is {raw!r}; it must be a dict")
    return raw


def _build(raw: Mapping[str, Any]) -> OutboxSettings:
    return OutboxSettings(**dict(_convert(key, value) for key, value in raw.items()))


def _convert(key: str, value: Any) -> tuple[str, Any]:
    name = _NAMES.get(key)
    if name is None:
        raise InvalidSetting(f"OUTBOX[{key!r}] is not a setting{suggestion(str(key), _NAMES)}")
    if key == "DATABASES":
        return name, _aliases(value)
    converted = _as_type(key, value, type(getattr(_DEFAULTS, name)))
    if key in _POSITIVE and not converted:
        raise InvalidSetting(f"OUTBOX[{key!r}] is {value!r}; it must be greater than zero")
    return name, converted


def _as_type(key: str, value: Any, wanted: type) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is timedelta and number:
        value = _duration(key, value)
    if wanted is str and isinstance(value, PathLike):
        value = fspath(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        expected = (
            "a timedelta or a number of seconds" if wanted is timedelta else f"of type {wanted.__name__}"
        )
        raise InvalidSetting(f"OUTBOX[{key!r}] is {value!r}; it must be {expected}")
    zero: Any = timedelta() if wanted is timedelta else 0
    if wanted in (int, timedelta) and value < zero:
        raise InvalidSetting(f"OUTBOX[{key!r}] is {value!r}; it must not be negative")
    longest = _LONGEST.get(key, LONGEST)
    if isinstance(value, timedelta) and value > longest:
        raise InvalidSetting(
            f"OUTBOX[{key!r}] is {value!r}; the longest duration is timedelta(days={longest.days})"
        )
    if isinstance(value, int) and value > _LARGEST:
        raise InvalidSetting(f"OUTBOX[{key!r}] is {value!r}; the largest number is {_LARGEST}")
    return value


def _duration(key: str, seconds: float) -> timedelta:
    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        longest = _LONGEST.get(key, LONGEST)
        raise InvalidSetting(
            f"OUTBOX[{key!r}] is {seconds!r}; the longest duration is timedelta(days={longest.days})"
        ) from None


def _aliases(value: Any) -> tuple[str, ...]:
    if value is None:
        return _DEFAULTS.databases
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(
        isinstance(alias, str) for alias in value
    ):
        raise InvalidSetting(
            f"OUTBOX['DATABASES'] is {value!r}; it must be a list of database aliases or None"
        )
    unknown = [alias for alias in value if alias not in django_settings.DATABASES]
    if unknown or not value:
        raise InvalidSetting(
            f"OUTBOX['DATABASES'] is {value!r}; choose from {sorted(django_settings.DATABASES)!r}"
        )
    return tuple(value)

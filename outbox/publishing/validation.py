"""The arguments of `publish()`, and their validation before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from outbox.contexts import headers_for
from outbox.durations import LONGEST
from outbox.errors import InvalidKey, InvalidTime, PayloadTooLarge
from outbox.events import MAX_KEY_LENGTH
from outbox.models import NO_HEADERS
from outbox.models.clock import from_project
from outbox.serialization import dump_json
from outbox.serialization.json import text_fault
from outbox.topics import check_topic

# A moment, or a duration from now.
Time = datetime | timedelta

_ZERO = timedelta()


class EventData(NamedTuple):
    """One event for `publish_many`; the fields are the arguments of `publish`."""

    topic: str
    payload: Any = None
    key: str = ""
    delay: timedelta | None = None
    eta: datetime | None = None
    headers: Mapping[str, Any] | None = None
    expires: Time | None = None
    dedup_key: str | None = None


def validate(data: EventData, *, max_payload_bytes: int) -> tuple[str, str, Time, Time | None]:
    """Check all arguments of an event, and convert them for the database.

    Returns:
        The payload and the headers as JSON text, the due time, and the time of expiry (None for never).

    Raises:
        PublishError: InvalidTopic, InvalidKey, InvalidPayload, PayloadTooLarge or InvalidTime.
    """
    check_topic(data.topic)
    _check_key("key", data.key)
    if data.dedup_key is not None:
        _check_key("dedup_key", data.dedup_key)
    payload = dump_json(data.payload)
    headers = headers_for(data.headers)
    headers_text = dump_json(headers, path="headers") if headers else NO_HEADERS
    _check_size(data.topic, payload, headers_text, max_payload_bytes)
    return payload, headers_text, _due(data.delay, data.eta), _expiry(data.expires)


def _check_key(name: str, key: object) -> None:
    if not isinstance(key, str) or len(key) > MAX_KEY_LENGTH or text_fault(key):
        raise InvalidKey(
            f"{name} {key!r} must be a string of at most {MAX_KEY_LENGTH} characters "
            "without NUL and lone surrogates"
        )


def _check_size(topic: str, payload: str, headers: str, limit: int) -> None:
    size = len(payload) + len(headers)
    # A character has at most four bytes, so most payloads need not be encoded to be measured.
    if size * 4 > limit and (size := len(payload.encode()) + len(headers.encode())) > limit:
        raise PayloadTooLarge(
            f"the event {topic!r} has {size} bytes of payload and headers; MAX_PAYLOAD_BYTES is {limit}. "
            "Store the data and publish a reference to it, or raise the limit"
        )


def _due(delay: timedelta | None, eta: datetime | None) -> Time:
    if delay is not None and eta is not None:
        raise InvalidTime("delay and eta were both given; give one of them")
    if delay is not None and delay < _ZERO:
        raise InvalidTime(f"delay {delay!r} is negative; give a positive timedelta or none")
    if delay is not None and delay > LONGEST:
        raise InvalidTime(f"delay {delay!r} is too long; give at most timedelta(days={LONGEST.days})")
    if eta is not None:
        return _aware("eta", eta)
    return delay or _ZERO


def _expiry(expires: Time | None) -> Time | None:
    if isinstance(expires, datetime):
        return _aware("expires", expires)
    if expires is not None and expires <= _ZERO:
        raise InvalidTime(f"expires {expires!r} is not positive; give a positive timedelta or none")
    if expires is not None and expires > LONGEST:
        raise InvalidTime(f"expires {expires!r} is too far away; give at most timedelta(days={LONGEST.days})")
    return expires


def _aware(name: str, moment: datetime) -> datetime:
    try:
        return from_project(moment)
    except ValueError:
        raise InvalidTime(
            f"{name} {moment!r} is naive; give an aware datetime, such as timezone.now() + timedelta(…)"
        ) from None

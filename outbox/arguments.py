"""What `publish()` accepts: each argument is checked before anything is written."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone

from .errors import InvalidKey, InvalidTime, PayloadTooLarge
from .serialization.json import text_fault

MAX_KEY_LENGTH = 255


def check_key(name: str, key: object) -> None:
    """Refuse what the column cannot keep.

    Raises:
        InvalidKey: with the offending value.
    """
    if not isinstance(key, str) or len(key) > MAX_KEY_LENGTH or text_fault(key):
        raise InvalidKey(
            f"{name} {key!r} must be a string of at most {MAX_KEY_LENGTH} characters "
            "without NUL and lone surrogates"
        )


def due_at(delay: timedelta | None, eta: datetime | None) -> datetime | timedelta:
    """Return when an event is due: a moment, or how long from now.

    Raises:
        InvalidTime: for a negative delay, a naive eta, or both at once.
    """
    if delay is not None and eta is not None:
        raise InvalidTime("delay and eta were both given; give one of them")
    if delay is not None and delay < timedelta():
        raise InvalidTime(f"delay {delay!r} is negative; give a positive timedelta or none")
    if eta is not None:
        _check_aware("eta", eta)
        return eta
    return delay or timedelta()


def expiry(expires: datetime | timedelta | None) -> datetime | timedelta | None:
    """Return when an event expires, as it was given.

    Raises:
        InvalidTime: for a timedelta that is not positive, or a naive moment.
    """
    if isinstance(expires, datetime):
        _check_aware("expires", expires)
    elif expires is not None and expires <= timedelta():
        raise InvalidTime(f"expires {expires!r} is not positive; give a positive timedelta or none")
    return expires


def check_size(topic: str, payload: str, headers: str, limit: int) -> None:
    """Refuse an event whose payload and headers have more than `limit` bytes.

    Raises:
        PayloadTooLarge: with the size and the remedy.
    """
    size = len(payload) + len(headers)
    # A character is at most four bytes, so most payloads need not be encoded to be measured.
    if size * 4 > limit and (size := len(payload.encode()) + len(headers.encode())) > limit:
        raise PayloadTooLarge(
            f"the event {topic!r} has {size} bytes of payload and headers; MAX_PAYLOAD_BYTES is {limit}. "
            "Store the data and publish a reference to it, or raise the limit"
        )


def _check_aware(name: str, moment: datetime) -> None:
    if timezone.is_naive(moment):
        raise InvalidTime(
            f"{name} {moment!r} is naive; give an aware datetime, such as timezone.now() + timedelta(…)"
        )

"""Everything that outbox raises, named by condition.

OutboxError
├── InvalidSetting              settings.OUTBOX holds an unknown key or a value of the wrong type
├── PublishError                a caller of publish() can mend it
│   ├── NotInTransaction
│   ├── InvalidTopic
│   ├── InvalidKey
│   ├── InvalidTime             a naive eta, a negative delay, or both given
│   ├── InvalidPayload          a value that JSON cannot carry, named by its path
│   │   └── UnserializableArgument      the same for an argument of a signal
│   ├── PayloadTooLarge
│   └── UnknownDatabase
├── RegistrationError           a decorator was used wrongly
│   └── DuplicateHandler
├── UnknownHandler              no handler is registered under this name
├── InstanceMissing             a model instance that an event refers to is gone
└── BrokerUnavailable           the broker could not be reached, or did not answer in time
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OutboxError(Exception):
    """Base class of everything this package raises."""


class InvalidSetting(OutboxError):
    """Raised when `settings.OUTBOX` holds an unknown key or a value of the wrong type."""


class PublishError(OutboxError):
    """Base class of what a caller of `publish()` did wrong."""


class NotInTransaction(PublishError):
    """Raised when an event is published outside a transaction."""


class InvalidTopic(PublishError):
    """Raised when a topic is empty or not a dotted name."""


class InvalidKey(PublishError):
    """Raised when a key is not a string, too long, or holds a NUL."""


class InvalidTime(PublishError):
    """Raised when an eta is naive, a delay is negative, or both are given."""


class InvalidPayload(PublishError):
    """Raised when a payload or its headers hold a value that JSON cannot carry.

    Args:
        path: where the value is, such as `payload['lines'][3]['price']`.
        reason: the fact and its remedy.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class UnserializableArgument(InvalidPayload):
    """Raised when an argument of a signal cannot travel to a worker.

    Args:
        signal: the name of the signal that was sent.
        path: the argument, or where in it the value is.
        reason: the type of the value and the remedy.
    """

    def __init__(self, signal: str, path: str, reason: str) -> None:
        super().__init__(path, f"{reason} (signal {signal!r})")
        self.signal = signal


class PayloadTooLarge(PublishError):
    """Raised when payload and headers exceed `MAX_PAYLOAD_BYTES`."""


class UnknownDatabase(PublishError):
    """Raised when an alias is not configured, or not served by the outbox."""


class RegistrationError(OutboxError):
    """Raised when a handler or receiver is declared wrongly."""


class DuplicateHandler(RegistrationError):
    """Raised when two different functions claim one handler name."""


class UnknownHandler(OutboxError):
    """Raised when no handler is registered under a name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"handler {name!r} is not registered{suggestion(name, known)}")
        self.name = name


class InstanceMissing(OutboxError):
    """Raised when a model instance that an event refers to no longer exists."""

    def __init__(self, model_label: str, pk: object) -> None:
        super().__init__(f"{model_label} with primary key {pk!r} no longer exists")
        self.model_label = model_label
        self.pk = pk


class BrokerUnavailable(OutboxError):
    """Raised when the broker cannot be reached or did not answer in time."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""The exceptions of the outbox, named by condition.

OutboxError
├── InvalidSetting              settings.OUTBOX holds an unknown key or a value of the wrong type
├── PublishError                an invalid call of publish()
│   ├── NotInTransaction
│   ├── InvalidTopic
│   ├── InvalidKey
│   ├── InvalidTime             a naive eta, a negative delay, or both given
│   ├── InvalidPayload          a value that JSON cannot represent, with its path
│   │   └── UnserializableArgument      the same for an argument of a signal
│   ├── PayloadTooLarge
│   ├── UnknownDatabase
│   └── MissingTables            the outbox's migrations are not applied to the database
├── RegistrationError           a handler or receiver is declared wrongly
│   └── DuplicateHandler
├── UnknownHandler              no handler is registered under this name
├── InstanceMissing             a model instance that an event refers to no longer exists
├── DeliveryFailed              a task failed without an error of its function
├── EmbeddedBrokerError         a message or a worker that EmbeddedBroker cannot have
├── TransactionRolledBack       the transaction of a transactional handler cannot commit
└── BrokerUnavailable           the broker could not be reached, or did not answer in time
    └── BrokerFull              the broker has too little memory left for more messages
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OutboxError(Exception):
    """Base class of all exceptions of this package."""


class InvalidSetting(OutboxError):
    """Raised when `settings.OUTBOX` holds an unknown key or a value of the wrong type."""


class PublishError(OutboxError):
    """Base class of the errors of invalid calls of `publish()`."""


class NotInTransaction(PublishError):
    """Raised when an event is published outside a transaction."""


class InvalidTopic(PublishError):
    """Raised when a topic is empty or not a dotted name."""


class InvalidKey(PublishError):
    """Raised when a key is not a string, is too long, or contains a NUL or a lone surrogate."""


class InvalidTime(PublishError):
    """Raised when an eta is naive, a delay is negative, or both are given."""


class InvalidPayload(PublishError):
    """Raised when a payload or its headers contain a value that JSON cannot represent.

    Args:
        path: the path of the value, such as `payload['lines'][3]['price']`.
        reason: the fact and its remedy.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class UnserializableArgument(InvalidPayload):
    """Raised when an argument of a signal cannot be encoded for a worker.

    Args:
        signal: the name of the signal that was sent.
        path: the argument, or the path of a value in it.
        reason: the type of the value and the remedy.
    """

    def __init__(self, signal: str, path: str, reason: str) -> None:
        super().__init__(path, f"{reason} (signal {signal!r})")
        self.signal = signal


class PayloadTooLarge(PublishError):
    """Raised when payload and headers exceed `MAX_PAYLOAD_BYTES`."""


class UnknownDatabase(PublishError):
    """Raised when an alias is not configured, or not served by the outbox."""


class MissingTables(PublishError):
    """Raised when a database lacks the tables of the outbox, or columns of this release."""

    def __init__(self, database: str, missing: str) -> None:
        super().__init__(
            f"database {database!r} lacks the outbox's {missing}; run manage.py migrate --database {database}"
        )


class RegistrationError(OutboxError):
    """Raised when a handler or receiver is declared wrongly."""


class DuplicateHandler(RegistrationError):
    """Raised when two functions are declared under one handler name."""


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


class DeliveryFailed(OutboxError):
    """Named in the result of a task that failed without an error of its function, such as by a crash."""


class EmbeddedBrokerError(OutboxError):
    """Raised when a message would vanish with the process, or a worker would get no message."""


class TransactionRolledBack(OutboxError):
    """Raised when a transactional handler returned, and its transaction cannot commit."""


class BrokerUnavailable(OutboxError):
    """Raised when the broker cannot be reached or does not answer in time."""


class BrokerFull(BrokerUnavailable):
    """Raised when the broker has too little memory left for more messages."""


# The codes undefined_table and undefined_column of PostgreSQL.
_MISSING_BY_CODE = {"42P01": "tables", "42703": "columns of this release"}
# SQLite has only the text.
_MISSING_BY_TEXT = {
    "no such table": "tables",
    "no such column": "columns of this release",
    "has no column named": "columns of this release",
}


def missing_schema(error: Exception) -> str:
    """Name the missing `tables` or columns of a failed statement; empty if it failed for another reason."""
    code = getattr(error.__cause__, "sqlstate", None)
    if code is not None:
        return _MISSING_BY_CODE.get(code, "")
    return next((missing for text, missing in _MISSING_BY_TEXT.items() if text in str(error)), "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""Durable Django signals over a transactional outbox, run by Dramatiq.

The names are imported when they are first used: models may not be imported before Django's apps are
loaded, and settings modules may want to import from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actors import TransactionalActor as TransactionalActor
    from .conditions import only_for_models as only_for_models
    from .conditions import only_in_environment as only_in_environment
    from .conditions import only_when_field_changed as only_when_field_changed
    from .conditions import signal_condition as signal_condition
    from .contexts import context as context
    from .contexts import current_event as current_event
    from .events import ReceivedEvent as ReceivedEvent
    from .managers import BulkSignalManager as BulkSignalManager
    from .managers import BulkSignalQuerySet as BulkSignalQuerySet
    from .monitoring import monitor as monitor
    from .monitoring import monitor_signal as monitor_signal
    from .publishing import EventData as EventData
    from .publishing import apublish as apublish
    from .publishing import publish as publish
    from .publishing import publish_many as publish_many
    from .receivers import receiver as receiver
    from .recorded import RecordedSend as RecordedSend
    from .signals import OutboxSignal as OutboxSignal
    from .signals import bulk_created as bulk_created
    from .signals import bulk_deleted as bulk_deleted
    from .signals import bulk_updated as bulk_updated
    from .signals import send_background as send_background
    from .subscriptions import handler as handler

__version__ = "0.1.0"

_HOMES = {
    "BulkSignalManager": "managers",
    "BulkSignalQuerySet": "managers",
    "EventData": "publishing",
    "OutboxSignal": "signals",
    "ReceivedEvent": "events",
    "RecordedSend": "recorded",
    "TransactionalActor": "actors",
    "apublish": "publishing",
    "bulk_created": "signals",
    "bulk_deleted": "signals",
    "bulk_updated": "signals",
    "context": "contexts",
    "current_event": "contexts",
    "handler": "subscriptions",
    "monitor": "monitoring",
    "monitor_signal": "monitoring",
    "only_for_models": "conditions",
    "only_in_environment": "conditions",
    "only_when_field_changed": "conditions",
    "publish": "publishing",
    "publish_many": "publishing",
    "receiver": "receivers",
    "send_background": "signals",
    "signal_condition": "conditions",
}

__all__ = [
    "BulkSignalManager",
    "BulkSignalQuerySet",
    "EventData",
    "OutboxSignal",
    "ReceivedEvent",
    "RecordedSend",
    "TransactionalActor",
    "apublish",
    "bulk_created",
    "bulk_deleted",
    "bulk_updated",
    "context",
    "current_event",
    "handler",
    "monitor",
    "monitor_signal",
    "only_for_models",
    "only_in_environment",
    "only_when_field_changed",
    "publish",
    "publish_many",
    "receiver",
    "send_background",
    "signal_condition",
]


if not TYPE_CHECKING:
    # A type checker that saw this would let every misspelt name pass.
    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{home}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

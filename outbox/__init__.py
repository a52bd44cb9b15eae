"""Durable Django signals over a transactional outbox, run by Dramatiq.

Each name is imported on first use: models may not be imported before Django's apps are loaded, and settings
modules may import from this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditions import only_for_models as only_for_models
    from .conditions import only_in_environment as only_in_environment
    from .conditions import only_when_field_changed as only_when_field_changed
    from .conditions import signal_condition as signal_condition
    from .contexts import context as context
    from .contexts import current_event as current_event
    from .events import ReceivedEvent as ReceivedEvent
    from .monitoring import monitor as monitor
    from .monitoring import monitor_signal as monitor_signal
    from .publishing.publish import apublish as apublish
    from .publishing.publish import publish as publish
    from .publishing.publish import publish_many as publish_many
    from .publishing.validation import EventData as EventData
    from .signals.background import send_background as send_background
    from .signals.bulk import bulk_created as bulk_created
    from .signals.bulk import bulk_deleted as bulk_deleted
    from .signals.bulk import bulk_updated as bulk_updated
    from .signals.bulk_queryset import BulkSignalManager as BulkSignalManager
    from .signals.bulk_queryset import BulkSignalQuerySet as BulkSignalQuerySet
    from .signals.history import RecordedSend as RecordedSend
    from .signals.outbox_signal import OutboxSignal as OutboxSignal
    from .signals.receiver import receiver as receiver
    from .subscribing.actors import TransactionalActor as TransactionalActor
    from .subscribing.handler import handler as handler

__version__ = "0.1.0"

_MODULES = {
    "BulkSignalManager": "signals.bulk_queryset",
    "BulkSignalQuerySet": "signals.bulk_queryset",
    "EventData": "publishing.validation",
    "OutboxSignal": "signals.outbox_signal",
    "ReceivedEvent": "events",
    "RecordedSend": "signals.history",
    "TransactionalActor": "subscribing.actors",
    "apublish": "publishing.publish",
    "bulk_created": "signals.bulk",
    "bulk_deleted": "signals.bulk",
    "bulk_updated": "signals.bulk",
    "context": "contexts",
    "current_event": "contexts",
    "handler": "subscribing.handler",
    "monitor": "monitoring",
    "monitor_signal": "monitoring",
    "only_for_models": "conditions",
    "only_in_environment": "conditions",
    "only_when_field_changed": "conditions",
    "publish": "publishing.publish",
    "publish_many": "publishing.publish",
    "receiver": "signals.receiver",
    "send_background": "signals.background",
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
    # With this function in view, a type checker would accept every misspelt name.
    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

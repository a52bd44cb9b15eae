"""`send_background()`: a worker sends a signal to its ordinary receivers."""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal

from outbox.errors import UnserializableArgument
from outbox.models import Event
from outbox.registry import registry

from .names import is_importable, signal_name
from .recorder import Subscription, needs_snapshot, recorder_for

BACKGROUND_HANDLER = "outbox.send_background"


def send_background(signal: Signal, sender: Any = None, **named: Any) -> Event:
    """Send a signal from a worker to all its ordinary receivers, after this transaction has committed.

    Background receivers of the signal get the same event, as from `signal.send()`. If an ordinary receiver
    fails, the delivery fails, and a retry calls all ordinary receivers again.

    Args:
        named: the arguments of the signal; `using` also names the database of the transaction.

    Raises:
        PublishError: as `outbox.publish()` does, and for a signal that a worker cannot import.
    """
    name = signal_name(signal)
    if not is_importable(signal):
        raise UnserializableArgument(
            name,
            "signal",
            "no module holds it, so a worker could not find it; define it at the top of a module",
        )
    recorder = recorder_for(signal)
    background = Subscription(registry.get(BACKGROUND_HANDLER), None, needs_snapshot(signal))
    return recorder.publish(sender, named, [*recorder.matching(sender, named), background])

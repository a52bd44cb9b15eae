"""The handler of `send_background()`."""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal

from outbox.contexts import current_event
from outbox.errors import InvalidPayload

from .background import BACKGROUND_HANDLER
from .receiver import receiver
from .unpublished import unpublished


# It subscribes to no signal: `send_background()` addresses it by name.
@receiver((), name=BACKGROUND_HANDLER)
def call_ordinary_receivers(signal: Signal | None, sender: Any, **named: Any) -> None:
    """Send a signal to its ordinary receivers.

    Raises:
        ExceptionGroup: the errors of the receivers.
        InvalidPayload: if no module holds the signal any more.
    """
    if signal is None:
        event = current_event()
        found = event and event.payload["signal"]
        raise InvalidPayload("signal", f"{found!r} is not a signal here; was it moved or renamed?")
    with unpublished(signal, sender, named):
        responses = signal.send_robust(sender, **named)
    errors = [_with_note(called, error) for called, error in responses if isinstance(error, Exception)]
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(responses)} receivers failed", errors)


def _with_note(called: Any, error: Exception) -> Exception:
    name = getattr(called, "__qualname__", type(called).__qualname__)
    error.add_note(f"Raised by the receiver {getattr(called, '__module__', '?')}.{name}")
    return error

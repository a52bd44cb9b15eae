"""The telemetry signals about outcomes; nothing is collected for a signal without receivers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.dispatch import Signal

from outbox.observability.telemetry import (
    delivery_discarded,
    delivery_failed,
    delivery_retried,
    delivery_succeeded,
)

from .outcome import Outcome

_RETRIED = "retried"
# By the state that an outcome writes. Only some deliveries that return to pending have run.
_BY_STATE: dict[str, Signal] = {
    "succeeded": delivery_succeeded,
    "pending": delivery_retried,
    "failed": delivery_failed,
    "discarded": delivery_discarded,
}
_WITHOUT_ERROR = (delivery_succeeded,)


def reported_states() -> set[str]:
    """Return the states whose outcomes have a signal with receivers."""
    return {state for state, signal in _BY_STATE.items() if signal.receivers}


def send_outcomes(sender: type, outcomes: Iterable[Outcome]) -> None:
    """Send the signal of each written outcome."""
    for outcome in outcomes:
        if outcome.state != "pending" or outcome.result == _RETRIED:
            _send(_BY_STATE[outcome.state], sender, outcome)


def send_settled(sender: type, outcomes: Sequence[Outcome]) -> None:
    """Send the signals of outcomes that a transactional handler's own commit has written."""
    if not (delivery_succeeded.receivers or delivery_discarded.receivers):
        return
    for outcome in outcomes:
        if not outcome.state:
            _send(delivery_succeeded if outcome.result else delivery_discarded, sender, outcome)


def _send(signal: Signal, sender: type, outcome: Outcome) -> None:
    error = {} if signal in _WITHOUT_ERROR else {"error": outcome.error}
    signal.send_robust(
        sender,
        database=outcome.database,
        delivery_id=outcome.delivery.id,
        event_id=outcome.delivery.event_id,
        handler=outcome.handler,
        duration_s=outcome.duration_s,
        **error,
    )

"""The telemetry signals of one claim and its dispatch; nothing is built for a signal without receivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter

from outbox.models.relay_verbs import EXPIRED
from outbox.observability.telemetry import (
    batch_claimed,
    batch_dispatched,
    delivery_discarded,
    delivery_dispatched,
    delivery_failed,
    delivery_refused,
)
from outbox.observability.tracing import Dispatch, note_dispatch, tracers

from .claimed_delivery import ClaimedDelivery
from .dispatch import Dispatcher
from .marking import DispatchResult


def send_round(
    claimed: Sequence[ClaimedDelivery],
    result: DispatchResult,
    counts: Mapping[str, int],
    *,
    database: str,
    duration_s: float,
) -> None:
    """Send the signals of a committed claim.

    Args:
        claimed: all deliveries of the claim.
        counts: the number of sent deliveries by handler.
        duration_s: seconds from the claim to the commit.
    """
    if batch_claimed.receivers:
        of_claim = Counter(map(attrgetter("handler"), claimed))
        batch_claimed.send_robust(Dispatcher, database=database, counts=dict(of_claim))
    if counts and batch_dispatched.receivers:
        batch_dispatched.send_robust(
            Dispatcher, database=database, counts=dict(counts), duration_s=duration_s
        )
    if delivery_dispatched.receivers:
        for row in result.sent:
            _send_dispatched(row, database)
    if tracers and result.sent:
        note_dispatch(Dispatch(database, counts, duration_s, (row.headers for row in result.sent)))
    _send_unsent(result, database)


def _send_dispatched(row: ClaimedDelivery, database: str) -> None:
    delivery_dispatched.send_robust(
        Dispatcher,
        database=database,
        delivery_id=row.delivery_id,
        event_id=row.event_id,
        handler=row.handler,
        topic=row.topic,
        key=row.key,
        queue=row.queue,
        attempt=row.attempts,
    )


def _send_unsent(result: DispatchResult, database: str) -> None:
    for row, error in result.refused:
        delivery_refused.send_robust(
            Dispatcher,
            database=database,
            delivery_id=row.delivery_id,
            event_id=row.event_id,
            handler=row.handler,
            error=error,
        )
    ended = [(delivery_failed, row, error) for row, error in result.failed]
    ended += [(delivery_discarded, row, EXPIRED) for row in result.expired]
    for signal, row, error in ended:
        signal.send_robust(
            Dispatcher,
            database=database,
            delivery_id=row.delivery_id,
            event_id=row.event_id,
            handler=row.handler,
            duration_s=0.0,
            error=error,
        )

"""What became of claimed deliveries, and what of it is written down before the claim commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from outbox.models import Delivery

from .backoff import delay_for
from .claimed import Claimed


@dataclass
class Outcome:
    """What became of a batch: what went, and what must go back with its reason."""

    sent: list[Claimed] = field(default_factory=list)
    refused: list[tuple[Claimed, str]] = field(default_factory=list)
    released: list[tuple[Claimed, str, timedelta]] = field(default_factory=list)
    failed: list[tuple[Claimed, str]] = field(default_factory=list)
    expired: list[Claimed] = field(default_factory=list)
    paused: list[Claimed] = field(default_factory=list)


def mark(outcome: Outcome, *, database: str, max_attempts: int) -> None:
    """Write down what did not go, within the claim's transaction; what was refused too often has failed."""
    deliveries = Delivery.objects.using(database)
    for claimed, error in outcome.failed:
        deliveries.filter(pk=claimed.delivery_id).fail(error)
    if outcome.expired:
        deliveries.filter(pk__in=_ids(outcome.expired)).expire()
    if outcome.paused:
        deliveries.filter(pk__in=_ids(outcome.paused)).hold(Delivery.Held.PAUSE)
    for (error, delay), ids in _by_reason(outcome.released).items():
        deliveries.filter(pk__in=ids).release(delay, error)
    _mark_refused(outcome, database, max_attempts)


def _mark_refused(outcome: Outcome, database: str, max_attempts: int) -> None:
    refused, outcome.refused = outcome.refused, []
    if not refused:
        return
    deliveries = Delivery.objects.using(database)
    refusals = deliveries.filter(pk__in=_ids(claimed for claimed, _error in refused)).refuse()
    for claimed, error in refused:
        row, times = deliveries.filter(pk=claimed.delivery_id), refusals[claimed.delivery_id]
        if times >= max_attempts:
            row.fail(f"could not be sent in {times} attempts: {error}")
            outcome.failed.append((claimed, error))
        else:
            row.reschedule(timedelta(seconds=delay_for(times)), f"could not be sent: {error}")
            outcome.refused.append((claimed, error))


def _by_reason(released: Iterable[tuple[Claimed, str, timedelta]]) -> dict[tuple[str, timedelta], list[int]]:
    groups: dict[tuple[str, timedelta], list[int]] = defaultdict(list)
    for claimed, error, delay in released:
        groups[error, delay].append(claimed.delivery_id)
    return groups


def _ids(rows: Iterable[Claimed]) -> list[int]:
    return [row.delivery_id for row in rows]

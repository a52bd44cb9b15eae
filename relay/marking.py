"""What became of claimed deliveries, and what of it is written down before the claim commits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from django.db.models.functions import Left

from outbox.models import Delivery

from .backoff import delay_for
from .messages import Claimed

# Far below what the column keeps, whose end counts, while the number of refusals is at the start.
MAX_REASON_CHARS = 5_000

# The number is kept in the reason, since a column would cost every delivery for what hardly any has. The
# attempts on the row do not tell: those that reached a worker are among them.
_REFUSED = re.compile(r"could not be sent, attempt (\d{1,5}) of ")

Refused = list[tuple[Claimed, str]]


@dataclass
class Outcome:
    """What became of a batch: what went, and what must go back with its reason."""

    sent: list[Claimed] = field(default_factory=list)
    refused: Refused = field(default_factory=list)
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
    refused, outcome.refused = outcome.refused, []
    for claimed, error, times in _counted(refused, database):
        row = deliveries.filter(pk=claimed.delivery_id)
        reason = f"could not be sent, attempt {times} of {max_attempts}: {error[-MAX_REASON_CHARS:]}"
        if times >= max_attempts:
            row.fail(reason)
            outcome.failed.append((claimed, error))
        else:
            row.reschedule(timedelta(seconds=delay_for(times)), reason)
            outcome.refused.append((claimed, error))


def _counted(refused: Refused, database: str) -> Iterator[tuple[Claimed, str, int]]:
    """Add to each refusal how often its delivery has been refused in a row, this time included."""
    if not refused:
        return
    rows = Delivery.objects.using(database).filter(
        pk__in=[claimed.delivery_id for claimed, _error in refused]
    )
    reasons = dict(rows.annotate(start=Left("error", 60)).values_list("pk", "start"))
    for claimed, error in refused:
        before = _REFUSED.match(reasons.get(claimed.delivery_id, ""))
        # An operator's retry leaves the reason, and starts the attempts again.
        yield claimed, error, min(int(before[1]) if before else 0, max(claimed.attempts - 1, 0)) + 1


def _by_reason(released: Iterable[tuple[Claimed, str, timedelta]]) -> dict[tuple[str, timedelta], list[int]]:
    groups: dict[tuple[str, timedelta], list[int]] = defaultdict(list)
    for claimed, error, delay in released:
        groups[error, delay].append(claimed.delivery_id)
    return groups


def _ids(rows: Iterable[Claimed]) -> list[int]:
    return [row.delivery_id for row in rows]

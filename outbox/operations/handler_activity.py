"""The registered handlers with their backlog, rate and durations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from outbox.models import Delivery, PausedHandler
from outbox.models.handler_counts import count_by_handler, count_failed_and_waiting
from outbox.registry import registry

from .blocked_keys import BlockedKey
from .stats import Slot, get_series, get_stats

# Failed and waiting deliveries of one handler are counted up to this number.
HANDLER_LIMIT = 1000
# The first due deliveries, and the first unconfirmed ones, that are counted by handler.
GROUPED_LIMIT = 10_000

_HOUR, _MINUTE = timedelta(hours=1), timedelta(minutes=1)
# The rate is the mean of this many full minutes.
_RATE_MINUTES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerActivity:
    """One registered handler.

    Args:
        due: among the first `GROUPED_LIMIT` due deliveries; `unconfirmed` is counted so too.
        waiting: counted up to `HANDLER_LIMIT`, as is `failed`.
        rate_per_minute: runs that succeeded, in the last five full minutes.
        p95_s: of the runs of the last hour; None without a run.
        slots: the runs of each minute of the last hour.
        pause_reason: None unless the handler is paused.
        blocked_keys: the ordering keys that a failed delivery blocks.
    """

    name: str
    queue: str
    due: int
    waiting: int
    unconfirmed: int
    failed: int
    rate_per_minute: float
    p95_s: float | None
    slots: list[Slot]
    pause_reason: str | None
    blocked_keys: int


def get_handler_activity(database: str, blocked: Iterable[BlockedKey]) -> list[HandlerActivity]:
    """Return the registered handlers: failing ones first, then paused ones, then by name.

    Args:
        blocked: the blocked ordering keys of the health report.
    """
    deliveries = Delivery.objects.using(database)
    due = count_by_handler(deliveries.due(), limit=GROUPED_LIMIT)
    unconfirmed = count_by_handler(deliveries.unconfirmed().order_by("confirm_by"), limit=GROUPED_LIMIT)
    handlers = registry.handlers
    failed_and_waiting = count_failed_and_waiting(database, list(handlers), limit=HANDLER_LIMIT)
    paused = dict(PausedHandler.objects.using(database).values_list("handler", "reason"))
    series = get_series(_HOUR, _MINUTE, using=database)
    p95 = {each.handler: each.p95_s for each in get_stats(since=_HOUR, using=database) if each.runs}
    blocked_keys = Counter(each.handler for each in blocked)
    rows = []
    for name, handler in handlers.items():
        failed, waiting = failed_and_waiting[name]
        slots = series.get(name, [])
        rows.append(
            HandlerActivity(
                name=name,
                queue=handler.queue,
                due=due.get(name, 0),
                waiting=waiting,
                unconfirmed=unconfirmed.get(name, 0),
                failed=failed,
                rate_per_minute=_rate(slots),
                p95_s=p95.get(name),
                slots=slots,
                pause_reason=paused.get(name),
                blocked_keys=blocked_keys[name],
            )
        )
    return sorted(rows, key=_order)


def _rate(slots: list[Slot]) -> float:
    # The last slot is the current minute.
    return sum(slot.succeeded for slot in slots[-1 - _RATE_MINUTES : -1]) / _RATE_MINUTES


def _order(row: HandlerActivity) -> tuple[int, bool, str]:
    return (-row.failed, row.pause_reason is None, row.name)

"""The problems of a health report, each found with bounded statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from outbox.durations import format_duration
from outbox.errors import suggestion
from outbox.models import Delivery, ProcessHeartbeat
from outbox.registry import registry

from .blocked_keys import BlockedKey
from .health_figures import count, minutes_without_run, seconds
from .health_report import (
    LIST_LIMIT,
    Figures,
    Health,
    PausedHealth,
    Problem,
    ProblemKind,
    ProcessHealth,
    QueueHealth,
)
from .unhandled_topics import unhandled_topics
from .unknown_handlers import describe_waiting

# A queue without a worker is a problem when its oldest delivery is this old, which is longer than a restart.
NO_WORKER_AFTER_S = 10.0
# Deliveries that workers do not confirm are a problem after this time.
NOTHING_CONFIRMED_AFTER_S = 60.0
# Rows of one handler that are read for the reason why its deliveries are put off.
PUT_OFF_ROWS = 20

_RELAY = ProcessHeartbeat.Kind.RELAY


def find_problems(health: Health, *, max_lag: timedelta | None) -> list[Problem]:
    """Return the problems of a report without them, the worst first.

    Args:
        max_lag: the longest time from the due time of a delivery to its confirmation; None for any.
    """
    found = [
        *_of_relays(health.processes),
        *_of_queues(health.database, health.queues),
        *_of_lag(health.figures, max_lag),
        *_of_put_off_deliveries(health.database),
        *_of_failures(health.database),
        *_of_blocked_keys(health.blocked_keys),
        *_of_overdue_deliveries(health.figures),
        *_of_paused_handlers(health.paused),
        *_of_unhandled_topics(health.database),
    ]
    order = list(ProblemKind)
    return sorted(found, key=lambda problem: order.index(problem.kind))


# ---------------------------------------------------------------- processes


def _of_relays(processes: Sequence[ProcessHealth]) -> Iterator[Problem]:
    relays = [process for process in processes if process.kind == _RELAY]
    alive = [relay for relay in relays if relay.alive]
    if not alive:
        seen_s = min((relay.seen_s for relay in relays), default=None)
        known = f"; the last was seen {format_duration(seen_s)} ago" if seen_s is not None else ""
        yield Problem(kind=ProblemKind.NO_RELAY, cause=f"no relay is alive{known}", age_s=seen_s)
    for relay in alive:
        where = f"{relay.host}:{relay.pid}"
        if relay.state != "running":
            cause = f"relay {where}: {relay.state} for {format_duration(relay.state_s)}: {relay.detail}"
            yield Problem(
                kind=ProblemKind.RELAY_IN_TROUBLE, cause=cause, subject=where, count=1, age_s=relay.state_s
            )
        for reported in relay.problems:
            if reported.get("kind") == ProblemKind.RELAY_POLLS:
                cause = f"relay {where} polls, as it cannot LISTEN: {reported.get('cause', '')}"
                yield Problem(kind=ProblemKind.RELAY_POLLS, cause=cause, subject=where, count=1)


def _of_queues(database: str, queues: Sequence[QueueHealth]) -> Iterator[Problem]:
    idle: list[QueueHealth] = []
    for queue in queues:
        if queue.name and not queue.workers and queue.oldest_unconfirmed_s > NO_WORKER_AFTER_S:
            yield _queue_problem(
                ProblemKind.NO_WORKER, queue, f"no worker serves queue {queue.name!r}, whose oldest"
            )
        elif queue.oldest_unconfirmed_s > NOTHING_CONFIRMED_AFTER_S:
            idle.append(queue)
    minutes = minutes_without_run(database) if idle else None
    if minutes is None or minutes * 60 < NOTHING_CONFIRMED_AFTER_S:
        return
    for queue in idle:
        where = f"queue {queue.name!r}" if queue.name else "other queues"
        cause = f"no run has ended for {minutes} min; {where}: the oldest"
        yield _queue_problem(ProblemKind.NOTHING_CONFIRMED, queue, cause)


def _queue_problem(kind: ProblemKind, queue: QueueHealth, cause: str) -> Problem:
    age_s = queue.oldest_unconfirmed_s
    waits = f"of {queue.unconfirmed:,} unconfirmed deliveries has waited {format_duration(age_s)}"
    return Problem(
        kind=kind, cause=f"{cause} {waits}", subject=queue.name, count=queue.unconfirmed, age_s=age_s
    )


# ---------------------------------------------------------------- deliveries


def _of_lag(figures: Figures, max_lag: timedelta | None) -> Iterator[Problem]:
    if max_lag is None or figures.lag_s <= max_lag.total_seconds():
        return
    is_due = figures.oldest_due_s >= figures.oldest_unconfirmed_s
    oldest = "due" if is_due else "unconfirmed"
    waited, allowed = format_duration(figures.lag_s), format_duration(max_lag.total_seconds())
    cause = f"the oldest {oldest} delivery has waited {waited}; at most {allowed} is allowed"
    number = figures.due if is_due else figures.unconfirmed
    yield Problem(kind=ProblemKind.LAG, cause=cause, count=number, age_s=figures.lag_s)


def _of_put_off_deliveries(database: str) -> Iterator[Problem]:
    put_off = Delivery.objects.using(database).put_off()
    for handler in _handlers(put_off):
        rows = put_off.filter(handler=handler).order_by("due_since")
        if registry.find(handler) is None:
            number, age_s = count(rows), _age_s(rows, "due_since")
            cause = describe_waiting(handler, number)
            yield Problem(
                kind=ProblemKind.UNKNOWN_HANDLER, cause=cause, subject=handler, count=number, age_s=age_s
            )
        elif reason := _reason(rows):
            number, age_s = count(rows), _age_s(rows, "due_since")
            cause = f"{_deliveries(number)} for handler {handler!r}: {reason}"
            yield Problem(kind=ProblemKind.PUT_OFF, cause=cause, subject=handler, count=number, age_s=age_s)


def _deliveries(number: int) -> str:
    return "1 delivery waits" if number == 1 else f"{number:,} deliveries wait"


def _reason(rows: Any) -> str:
    """Return the reason why the oldest rows are put off; empty if they are due now, as after a redelivery."""
    later = ExpressionWrapper(F("available_at") - Now(), output_field=DurationField())
    found = rows.annotate(later=later).values_list("later", "error")[:PUT_OFF_ROWS]
    return next((_last_line(error) for later, error in found if later > timedelta()), "")


def _of_failures(database: str) -> Iterator[Problem]:
    failed = Delivery.objects.using(database).failed()
    for handler in _handlers(failed):
        rows = failed.filter(handler=handler).order_by("id")
        newest = rows.order_by("-id")
        number, last = count(rows), format_duration(_age_s(newest, "finished_at"))
        error = newest.values_list("error", flat=True).first() or ""
        cause = f"{handler} fails ({number:,}), the last time {last} ago: {_last_line(error)}"
        yield Problem(
            kind=ProblemKind.HANDLER_FAILS,
            cause=cause,
            subject=handler,
            count=number,
            age_s=_age_s(rows, "finished_at"),
        )


def _of_blocked_keys(keys: Sequence[BlockedKey]) -> Iterator[Problem]:
    for blocked in keys:
        cause = (
            f"ordering key {blocked.key!r} of {blocked.handler} is blocked by failed delivery "
            f"{blocked.delivery_id}: {blocked.error}"
        )
        yield Problem(kind=ProblemKind.BLOCKED_KEY, cause=cause, subject=blocked.key, count=blocked.waiting)


def _of_overdue_deliveries(figures: Figures) -> Iterator[Problem]:
    if figures.overdue:
        number = "1 delivery" if figures.overdue == 1 else f"{figures.overdue:,} deliveries"
        cause = f"no worker confirmed {number} within CONFIRM_TIMEOUT"
        yield Problem(kind=ProblemKind.OVERDUE, cause=cause, count=figures.overdue)


def _of_paused_handlers(paused: Sequence[PausedHealth]) -> Iterator[Problem]:
    for row in paused:
        reason = f": {row.reason}" if row.reason else ""
        yield Problem(
            kind=ProblemKind.PAUSED_HANDLER,
            cause=f"{row.handler} is paused, and {_deliveries(row.waiting)}{reason}",
            subject=row.handler,
            count=row.waiting,
            age_s=row.paused_s,
        )


def _of_unhandled_topics(database: str) -> Iterator[Problem]:
    known = {topic for handler in registry.handlers.values() for topic in handler.topics}
    for topic, number in unhandled_topics(database)[:LIST_LIMIT]:
        events = "1 event" if number == 1 else f"{number:,} events"
        cause = f"no handler ever had topic {topic!r} of {events}{suggestion(topic, known)}"
        yield Problem(kind=ProblemKind.UNHANDLED_TOPIC, cause=cause, subject=topic, count=number)


def _handlers(rows: Any) -> Iterable[str]:
    """Yield the first handlers of rows with an index by handler, in one step of the index for each."""
    last = ""
    for _ in range(LIST_LIMIT):
        following = rows.filter(handler__gt=last).order_by("handler").values_list("handler", flat=True)
        handler = following.first()
        if handler is None:
            return
        yield handler
        last = handler


def _age_s(rows: Any, column: str) -> float:
    """Return the age of a time of the first row, in seconds."""
    age = ExpressionWrapper(Now() - F(column), output_field=DurationField())
    return seconds(rows.annotate(age=age).values_list("age", flat=True).first())


def _last_line(error: str) -> str:
    return error.strip().rpartition("\n")[2]

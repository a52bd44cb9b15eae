"""The figures of a health report; each is one bounded statement along a partial index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import (
    Count,
    DurationField,
    ExpressionWrapper,
    F,
    Max,
    Q,
    QuerySet,
    Sum,
)
from django.db.models.functions import Now, TruncMinute

from outbox.conf import get_settings
from outbox.models import Delivery, HandlerStats, PausedHandler, ProcessHeartbeat
from outbox.models.clock import to_aware
from outbox.models.delivery_filters import DUE_SINCE
from outbox.models.heartbeat import ALIVE_FOR
from outbox.registry import registry

from .due_age import oldest_due_s
from .health_report import (
    COUNT_LIMIT,
    LIST_LIMIT,
    PROCESS_LIMIT,
    Figures,
    PausedHealth,
    ProcessHealth,
    QueueHealth,
)

_AGE = ExpressionWrapper(Now() - DUE_SINCE, output_field=DurationField())
_MINUTE = timedelta(minutes=1)

# The last run is searched within this time.
LAST_RUN_WITHIN = timedelta(hours=1)


def measure(database: str, queues: Sequence[QueueHealth], overdue: int) -> Figures:
    """Return the figures.

    Args:
        queues: the queues with their unconfirmed deliveries.
        overdue: the number of overdue deliveries.
    """
    deliveries = Delivery.objects.using(database)
    later = deliveries.pending().filter(waits_for="", available_at__gt=Now())
    return Figures(
        due=count(deliveries.due()),
        oldest_due_s=oldest_due_s(database, limit=COUNT_LIMIT),
        unconfirmed=min(sum(queue.unconfirmed for queue in queues), COUNT_LIMIT),
        oldest_unconfirmed_s=max((queue.oldest_unconfirmed_s for queue in queues), default=0.0),
        failed=count(deliveries.failed()),
        throughput_per_minute=_throughput(database),
        scheduled=_scheduled(later),
        waiting=count(deliveries.pending().exclude(waits_for="")),
        put_off=count(deliveries.put_off()),
        overdue=overdue,
    )


def count(rows: QuerySet[Any]) -> int:
    """Return the number of rows, counted up to `COUNT_LIMIT`."""
    return rows.order_by().values("pk")[:COUNT_LIMIT].count()


def seconds(age: timedelta | None) -> float:
    """Return an age in seconds; 0.0 for none, and for a negative age."""
    return round(max(age.total_seconds(), 0.0), 3) if age else 0.0


def queues_of(database: str, processes: Sequence[ProcessHealth]) -> tuple[list[QueueHealth], int]:
    """Return the queues of the handlers, and one without a name for other queues; and the overdue count.

    The statement reads the first `COUNT_LIMIT` unconfirmed deliveries by the time of their redelivery.
    """
    names = sorted({handler.queue for handler in registry.handlers.values()})
    sums: dict[str, Any] = {"overdue": Count("pk", filter=Q(confirm_by__lt=Now()))}
    filters = [Q(queue=name) for name in names] + [~Q(queue__in=names)]
    for index, of_queue in enumerate(filters):
        sums[f"count_{index}"] = Count("pk", filter=of_queue)
        sums[f"age_{index}"] = Max("age", filter=of_queue)
    unconfirmed = Delivery.objects.using(database).unconfirmed().order_by("confirm_by")
    found = unconfirmed.annotate(age=_AGE)[:COUNT_LIMIT].aggregate(**sums)
    queues = [
        _queue(name, found[f"count_{index}"], found[f"age_{index}"], processes)
        for index, name in enumerate([*names, ""])
    ]
    return [queue for queue in queues if queue.name or queue.unconfirmed], found["overdue"]


def processes_of(database: str) -> list[ProcessHealth]:
    """Return the relays and workers, the last seen first."""
    rows = ProcessHeartbeat.objects.using(database).annotate(
        seen=ExpressionWrapper(Now() - F("seen_at"), output_field=DurationField()),
        since=ExpressionWrapper(Now() - F("state_since"), output_field=DurationField()),
        last_dispatch=ExpressionWrapper(Now() - F("last_dispatch_at"), output_field=DurationField()),
    )
    return [_process(row) for row in rows.order_by("-seen_at", "pk")[:PROCESS_LIMIT]]


def paused_handlers(database: str) -> list[PausedHealth]:
    """Return the first paused handlers, each with its waiting deliveries."""
    age = ExpressionWrapper(Now() - F("paused_at"), output_field=DurationField())
    rows: Any = PausedHandler.objects.using(database).annotate(paused_for=age).order_by("handler")
    return [
        PausedHealth(
            handler=row.handler,
            reason=row.reason,
            waiting=row.waiting(COUNT_LIMIT),
            paused_at=to_aware(row.paused_at, database),
            paused_s=seconds(row.paused_for),
        )
        for row in rows[:LIST_LIMIT]
    ]


def minutes_without_run(database: str) -> int | None:
    """Return the full minutes since the last run of any handler; None without statistics.

    After `LAST_RUN_WITHIN` it is the length of that time.
    """
    if not get_settings().stats:
        return None
    ran = Q(succeeded__gt=0) | Q(retried__gt=0) | Q(failed__gt=0)
    ago = ExpressionWrapper(Now() - F("bucket"), output_field=DurationField())
    recent = _stats(database).filter(ran, bucket__gt=Now() - LAST_RUN_WITHIN).annotate(ago=ago)
    last = recent.order_by("-bucket").values_list("ago", flat=True).first() or LAST_RUN_WITHIN
    # The row counts the runs of a whole minute.
    return int(last / _MINUTE) - 1


def _scheduled(later: Any) -> int:
    # The aggregate filters, so that the limit counts rows of the index.
    first = later.order_by("available_at", "id")[:COUNT_LIMIT]
    found: int = first.aggregate(count=Count("pk", filter=Q(due_since__isnull=True)))["count"]
    return found


def _throughput(database: str) -> int | None:
    if not get_settings().stats:
        return None
    this_minute = TruncMinute(Now())
    last = _stats(database).filter(bucket__gte=this_minute - _MINUTE, bucket__lt=this_minute)
    return last.aggregate(sum=Sum("succeeded"))["sum"] or 0


def _stats(database: str) -> Any:
    # Monitored functions have rows too.
    return HandlerStats.objects.using(database).filter(handler__in=list(registry.handlers))


def _queue(
    name: str, unconfirmed: int, age: timedelta | None, processes: Iterable[ProcessHealth]
) -> QueueHealth:
    serving = [
        process.threads
        for process in processes
        if process.alive and process.kind == ProcessHeartbeat.Kind.WORKER and name in process.queues
    ]
    return QueueHealth(
        name=name,
        unconfirmed=unconfirmed,
        oldest_unconfirmed_s=seconds(age),
        workers=len(serving),
        threads=sum(serving),
    )


def _process(row: Any) -> ProcessHealth:
    return ProcessHealth(
        kind=row.kind,
        host=row.host,
        pid=row.pid,
        version=row.version,
        queues=tuple(row.queue_names),
        threads=row.threads,
        state=row.state,
        state_s=seconds(row.since),
        detail=row.detail,
        alive=row.seen <= ALIVE_FOR,
        seen_s=seconds(row.seen),
        dispatched=row.dispatched,
        last_dispatch_s=None if row.last_dispatch is None else seconds(row.last_dispatch),
        problems=tuple(row.problems),
    )

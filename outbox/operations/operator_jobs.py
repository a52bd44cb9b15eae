"""Actions on all deliveries that match a filter, in chunks of one short transaction each."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db.models import OuterRef, Subquery
from django.db.models.lookups import Exact

from outbox.models import Delivery, Event, OperatorJob
from outbox.models.row_locks import brief_transaction, unlocked
from outbox.registry import registry

from .replay_jobs import replay_chunk

CHUNK = 1000
# Deliveries that a preview reads, and of these the deliveries that it shows.
PREVIEW_LIMIT = 10_000
SAMPLE = 10


class ChunkDone(NamedTuple):
    """The result of one chunk.

    Args:
        changed: the deliveries that the chunk has changed.
        has_more: whether any job has deliveries left.
    """

    changed: int = 0
    has_more: bool = False


class Preview(NamedTuple):
    """The deliveries that a job would change now.

    Args:
        number: their number among the first `PREVIEW_LIMIT` that have the state and the handler.
        is_exact: whether there are no others.
        sample: the first of them, with their events.
    """

    number: int
    is_exact: bool
    sample: list[Delivery]


def preview(database: str, verb: str, *, handler: str = "", topic: str = "") -> Preview:
    """Return the deliveries that a job with this verb and these filters would change now.

    Args:
        verb: of `OperatorJob.Verb`.
        handler: the name of the handler; all if empty.
        topic: the topic of the events; all if empty.
    """
    first = list(_candidates(database, verb, handler).values_list("pk", flat=True)[:PREVIEW_LIMIT])
    found = _with_topic(Delivery.objects.using(database).filter(pk__in=first), topic).order_by("pk")
    sample = list(found.defer("error", "message_options").prefetch_related("event")[:SAMPLE])
    return Preview(found.count(), len(first) < PREVIEW_LIMIT, sample)


def run_chunk(database: str, *, size: int = CHUNK) -> ChunkDone:
    """Change the next deliveries of the oldest unfinished job.

    The progress is committed with the changes, so a job that was interrupted continues after its last chunk
    and changes no delivery twice. Deliveries that a running handler locks are left out.

    Args:
        size: deliveries that one chunk reads, whether they have the topic or not.
    """
    jobs = OperatorJob.objects.using(database)
    if not jobs.unfinished().exists():
        return ChunkDone()
    resting: list[int] = []
    while True:
        with brief_transaction(database):
            job = jobs.next_unlocked(skipping=resting)
            if job is None:
                return ChunkDone()
            if job.verb != OperatorJob.Verb.REPLAY:
                return ChunkDone(_run_job(database, job, size), has_more=True)
            if (written := replay_chunk(database, job, size=size)) is not None:
                return ChunkDone(written, has_more=True)
        # A replay that keeps to its rate does not keep the next jobs waiting.
        resting.append(job.pk)


def _run_job(database: str, job: OperatorJob, size: int) -> int:
    rows = _candidates(database, job.verb, job.handler)
    rows = rows.filter(pk__gt=job.after_id, pk__lte=job.last_id)
    pks = list(rows.values_list("pk", flat=True)[:size])
    changed = _apply(database, job, pks)
    jobs = OperatorJob.objects.using(database)
    jobs.filter(pk=job.pk).advance(pks, changed=changed, is_last=len(pks) < size)
    return changed


def _candidates(database: str, verb: str, handler: str) -> Any:
    deliveries = Delivery.objects.using(database)
    rows = deliveries.unconfirmed() if verb == OperatorJob.Verb.RESEND else deliveries.failed()
    return (rows.filter(handler=handler) if handler else rows).order_by("pk")


def _with_topic(rows: Any, topic: str) -> Any:
    if not topic:
        return rows
    # By primary key for each row; a join might read all events.
    of_event = Event.objects.filter(pk=OuterRef("event_id")).values("topic")[:1]
    return rows.filter(Exact(Subquery(of_event), topic))


def _apply(database: str, job: OperatorJob, pks: list[int]) -> int:
    deliveries = Delivery.objects.using(database)
    rows = _with_topic(deliveries.filter(pk__in=pks), job.topic).order_by("pk")
    chosen = deliveries.filter(pk__in=list(unlocked(rows).values_list("pk", flat=True)))
    if job.verb == OperatorJob.Verb.RETRY:
        return int(chosen.retry())
    if job.verb == OperatorJob.Verb.RESEND:
        return int(chosen.retry_unconfirmed())
    reason = f"Discarded by {job.requested_by}: {job.reason}"
    return int(chosen.failed().discard(reason, skipping=registry.skipping()))

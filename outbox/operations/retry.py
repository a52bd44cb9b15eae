"""Retrying and discarding failed deliveries, and resending unconfirmed ones, for an operator."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections, transaction

from outbox.models import Delivery
from outbox.models.clock import to_column
from outbox.publishing.notify import wake
from outbox.registry import registry
from outbox.topics import check_pattern, compile_pattern

from .chunks import Done, ignore, in_chunks

CHUNK = 1000


class Retried(NamedTuple):
    """How many deliveries are pending again, by their earlier state, and how many run just now."""

    failed: int = 0
    unconfirmed: int = 0
    running: int = 0


def retry_ids(database: str, ids: Sequence[int]) -> Retried:
    """Retry the failed deliveries among these, and resend the unconfirmed ones.

    Each chunk is one short transaction. A delivery whose transactional handler runs just now is not resent.
    """
    deliveries = Delivery.objects.using(database)
    retried = Retried()
    for start in range(0, len(ids), CHUNK):
        chosen = deliveries.filter(pk__in=ids[start : start + CHUNK])
        # The unconfirmed ones first: a retried delivery may be dispatched at once.
        found = chosen.unconfirmed().count()
        unconfirmed = chosen.retry_unconfirmed()
        counts = (chosen.retry(), unconfirmed, max(found - unconfirmed, 0))
        retried = Retried(*map(sum, zip(retried, counts, strict=True)))
        wake(database)
    return retried


def retryable(database: str, ids: Sequence[int]) -> Any:
    """Return the failed and unconfirmed deliveries among these."""
    states = (Delivery.State.FAILED, Delivery.State.DISPATCHED)
    return Delivery.objects.using(database).filter(pk__in=ids, state__in=states)


def retry_matching(database: str, *, done: Done = ignore, **filters: Any) -> int:
    """Retry the failed deliveries of `failed_matching`, in chunks of one statement each; return how many.

    Args:
        done: called with the number of deliveries of each chunk.
    """
    retried = 0
    for chunk in in_chunks(failed_matching(database, **filters), size=CHUNK):
        retried += _retry(database, [pk for (pk,) in chunk])
        done(len(chunk))
    return retried


def discard_matching(database: str, reason: str, *, done: Done = ignore, **filters: Any) -> int:
    """Discard the failed deliveries of `failed_matching` in chunks, each in a transaction; return how many.

    Args:
        reason: stored in front of each delivery's last error.
        done: called with the number of deliveries of each chunk.
    """
    discarded = 0
    for chunk in in_chunks(failed_matching(database, **filters), size=CHUNK):
        discarded += discard_ids(database, [pk for (pk,) in chunk], reason)
        done(len(chunk))
    return discarded


def discard_ids(database: str, ids: Sequence[int], reason: str) -> int:
    """Discard the failed deliveries among these, and unblock their ordering keys; return how many."""
    discarded = 0
    for start in range(0, len(ids), CHUNK):
        with transaction.atomic(using=database):
            chosen = Delivery.objects.using(database).failed().filter(pk__in=ids[start : start + CHUNK])
            discarded += chosen.discard(reason, skipping=registry.skipping())
        # Blocked deliveries may be due now.
        wake(database)
    return discarded


def failed_matching(
    database: str, *, handler: str | None = None, topic: str | None = None, since: datetime | None = None
) -> Any:
    """Return the failed deliveries that match all the given arguments.

    Args:
        database: the database alias.
        handler: the name of the handler.
        topic: a topic or a pattern such as `shop.*`.
        since: the earliest time of the failure.

    Raises:
        UnknownHandler: if no handler has the name.
        InvalidTopic: if the pattern is malformed.
    """
    failed = Delivery.objects.using(database).failed()
    if handler:
        found = registry.get(handler)
        failed = failed.filter(handler__in=[found.name, *found.former_names])
    if since:
        failed = failed.filter(finished_at__gte=to_column(since, connections[database]))
    if topic:
        check_pattern(topic)
        failed = failed.filter(event__topic__regex=f"^{compile_pattern(topic).pattern}$")
    return failed


def _retry(database: str, pks: Sequence[int]) -> int:
    retried: int = Delivery.objects.using(database).filter(pk__in=pks).retry()
    wake(database)
    return retried

"""The statements that write outcomes and counts into the tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.db import DataError, Error, connections, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from ..conf import get_settings
from ..models import Delivery, HandlerStats
from ..outcomes import Outcome
from ..registry import registry
from ..wakeup import URGENT, wake
from .buffer import Batch, states_before

logger = logging.getLogger(__name__)

_Status = Delivery.Status


def attempt(database: str, piece: Batch) -> tuple[Batch, list[Outcome]]:
    """Write a piece; return what waits (the piece itself if nothing was written), and the failures."""
    try:
        try:
            left, written = write(database, piece)
        except DataError:
            logger.exception("database %r refused a batch; its outcomes go one by one", database)
            left, written = write_singly(database, piece)
    except BaseException as problem:
        # An interrupt may have come in the middle of a statement.
        if not connections[database].in_atomic_block:
            connections[database].close()
        if not isinstance(problem, Exception):
            raise
        # Whatever it is, the outcomes are worth more than this thread's peace.
        logger.warning("database %r is away; %d outcomes wait", database, len(piece.outcomes), exc_info=True)
        return piece, []
    # What is put back from here on is written twice, but not counted twice.
    piece.tallies = {}
    left.lanes |= release_lanes(database, piece.lanes)
    failed = [one for one in piece.outcomes.values() if one.status == _Status.FAILED]
    return left, [one for one in failed if one.delivery_id in written]


def write(database: str, piece: Batch) -> tuple[Batch, set[int]]:
    """Write a batch in one transaction; return what waits for locked rows, and the deliveries changed."""
    connection = connections[database]
    # Kept open between flushes whatever CONN_MAX_AGE says: that is meant for requests.
    if not connection.in_atomic_block and connection.errors_occurred:
        connection.close()
    with transaction.atomic(using=database):
        left, written = confirm(list(piece.outcomes.values()), database)
        HandlerStats.objects.using(database).add(piece.tallies)
    return Batch.of(left), written


def write_singly(database: str, piece: Batch) -> tuple[Batch, set[int]]:
    """Write a batch that was refused, one outcome at a time; what is refused alone is dropped."""
    left, written = list[Outcome](), set[int]()
    for outcome in piece.outcomes.values():
        try:
            with transaction.atomic(using=database):
                locked, done = confirm([outcome], database)
        except DataError:
            logger.exception("the outcome of delivery %d was refused", outcome.delivery_id)
        else:
            left += locked
            written |= done
    return Batch.of(left), written


def release_lanes(database: str, lanes: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Let the next of each lane go, after the transaction that ended the one before; return what waits."""
    try:
        if lanes and Delivery.objects.using(database).release_lanes(lanes, skipping=registry.skipping()):
            wake(database, saying=URGENT)
    except Error:
        logger.warning("database %r is away; %d lanes wait", database, len(lanes), exc_info=True)
        return lanes
    return set()


# A row that somebody has locked (the relay that is about to commit its dispatch, a transactional handler) is
# passed over and tried again, so that it does not hold up all other confirmations. Success is true whatever
# the row says meanwhile; the other outcomes only end what is still open, as `states_before` has it. Arrays
# have rows looked up by their ids: of a small table the planner would rather read all of it. Nearly all
# outcomes are successes, of which there is nothing to say but the id.
_CONFIRM = """
WITH outcome AS (
    SELECT id, 'succeeded' AS status, '' AS error, interval '0' AS wait FROM unnest(%s::bigint[]) AS o(id)
    UNION ALL
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::interval[])
), locked AS (
    SELECT d.id FROM outbox_delivery d JOIN outcome o USING (id)
    WHERE d.id = ANY(ARRAY(SELECT id FROM outcome))
      AND (d.status = 'dispatched' OR (d.status = 'pending' AND o.status <> 'dispatched')
           OR (d.status = 'failed' AND o.status = 'succeeded'))
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE outbox_delivery d SET
    status = o.status,
    error = CASE WHEN o.error = '' THEN d.error ELSE o.error END,
    held = CASE WHEN o.status = 'pending' THEN '' ELSE d.held END,
    available_at = CASE WHEN o.status = 'pending' THEN statement_timestamp() + o.wait ELSE d.available_at END,
    confirm_by = CASE WHEN o.status = 'dispatched' THEN statement_timestamp() + o.wait + %s END,
    finished_at = CASE WHEN o.status IN ('pending', 'dispatched') THEN NULL ELSE statement_timestamp() END
FROM outcome o
WHERE d.id = o.id AND d.id = ANY(ARRAY(SELECT id FROM locked))
RETURNING d.id
"""


def confirm(outcomes: Sequence[Outcome], database: str) -> tuple[list[Outcome], set[int]]:
    """Write outcomes in one statement.

    Returns:
        Those whose rows were locked by somebody else, and the ids of the deliveries that were changed.
    """
    if not outcomes:
        return [], set()
    if connections[database].vendor != "postgresql":
        changed = {one.delivery_id for one in outcomes if _confirm_portably(one, database)}
        _give_back(outcomes, changed, database)
        return [], changed
    plain = [one for one in outcomes if one.status == _Status.SUCCEEDED]
    others = [one for one in outcomes if one.status != _Status.SUCCEEDED]
    columns = [[getattr(one, name) for one in others] for name in ("delivery_id", "status", "error", "wait")]
    parameters: list[Any] = [_array(plain), *columns, get_settings().confirm_timeout]
    with connections[database].cursor() as cursor:
        cursor.execute(_CONFIRM, parameters)
        written = {row[0] for row in cursor.fetchall()}
    _give_back(others, written, database)
    if len(written) == len(outcomes):
        return [], written
    missed = [outcome for outcome in outcomes if outcome.delivery_id not in written]
    return _still_wanted(missed, database), written


def _array(outcomes: Sequence[Outcome]) -> str:
    # PostgreSQL's own notation. To make it of a list takes psycopg ten times as long.
    return f"{{{','.join([str(one.delivery_id) for one in outcomes])}}}"


def _give_back(outcomes: Sequence[Outcome], written: set[int], database: str) -> None:
    """Take back the attempts of deliveries that were not even begun."""
    unbegun = [one.delivery_id for one in outcomes if one.unbegun and one.delivery_id in written]
    if unbegun:
        Delivery.objects.using(database).filter(pk__in=unbegun, attempts__gt=0).update(
            attempts=F("attempts") - 1
        )


def _still_wanted(missed: Sequence[Outcome], database: str) -> list[Outcome]:
    deliveries = Delivery.objects.using(database).filter(pk__in=[outcome.delivery_id for outcome in missed])
    states = dict(deliveries.values_list("pk", "status"))
    for outcome in missed:
        if outcome.delivery_id not in states:
            logger.warning("delivery %d no longer exists; its outcome is dropped", outcome.delivery_id)
    return [outcome for outcome in missed if states.get(outcome.delivery_id) in states_before(outcome)]


def _confirm_portably(outcome: Outcome, database: str) -> bool:
    open_now = Q(pk=outcome.delivery_id, status__in=states_before(outcome))
    changes: dict[str, object] = {"status": outcome.status, "confirm_by": None, "finished_at": None}
    if outcome.error:
        changes["error"] = outcome.error
    if outcome.status == _Status.PENDING:
        changes |= {"available_at": Now() + outcome.wait, "held": ""}
    elif outcome.status == _Status.DISPATCHED:
        changes["confirm_by"] = Now() + outcome.wait + get_settings().confirm_timeout
    else:
        changes["finished_at"] = Now()
    return bool(Delivery.objects.using(database).filter(open_now).update(**changes))

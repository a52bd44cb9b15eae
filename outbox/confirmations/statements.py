"""The statements that write outcomes and counts into the tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from django.db import DataError, Error, connections, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from outbox.events import DeliveryRef
from outbox.models import Delivery, HandlerStats
from outbox.models.delivery_filters import DUE_SINCE
from outbox.outages import is_outage
from outbox.publishing.notify import URGENT, wake
from outbox.registry import registry

from .buffer import Buffer, replaceable_states
from .outcome import Outcome
from .outcome_signals import reported_states

logger = logging.getLogger(__name__)

_State = Delivery.State


def attempt(database: str, part: Buffer) -> tuple[Buffer, list[Outcome]]:
    """Write a part; return its rest (itself if nothing was written), and the written outcomes to report."""
    try:
        try:
            left, written = write(database, part)
        except DataError:
            logger.exception("database %r refused outcomes; they are written one by one", database)
            left, written = write_one_by_one(database, part)
    except BaseException as error:
        # An interrupt may have come during a statement.
        if not connections[database].in_atomic_block:
            connections[database].close()
        if not isinstance(error, Exception):
            raise
        # No error may lose the outcomes or end the thread.
        logger.warning(
            "database %r is away; %d outcomes wait: %s",
            database,
            len(part.outcomes),
            str(error).strip(),
            exc_info=not is_outage(error),
        )
        return part, []
    # Outcomes that are put back from here on are written twice, but not counted twice.
    part.tallies = {}
    left.ordering_keys |= unblock_keys(database, part.ordering_keys)
    reported = reported_states()
    outcomes = [one for one in part.outcomes.values() if one.state in reported]
    return left, [one for one in outcomes if one.delivery in written]


def write(database: str, part: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
    """Write a part in one transaction; return the outcomes of locked rows, and the changed deliveries."""
    connection = connections[database]
    # The connection stays open between flushes, as CONN_MAX_AGE is about requests.
    if not connection.in_atomic_block and connection.errors_occurred:
        connection.close()
    with transaction.atomic(using=database):
        left, written = confirm(list(part.outcomes.values()), database)
        HandlerStats.objects.using(database).add(part.tallies)
    return Buffer.from_outcomes(left), written


def write_one_by_one(database: str, part: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
    """Write a refused part one outcome at a time; an outcome that is refused alone is dropped."""
    left, written = list[Outcome](), set[DeliveryRef]()
    for outcome in part.outcomes.values():
        try:
            with transaction.atomic(using=database):
                locked, done = confirm([outcome], database)
        except DataError:
            logger.exception("the outcome of delivery %d was refused", outcome.delivery_id)
        else:
            left += locked
            written |= done
    return Buffer.from_outcomes(left), written


def unblock_keys(database: str, ordering_keys: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Unblock the next delivery of each key, after the commit of the outcomes; return the keys left."""
    try:
        if ordering_keys and Delivery.objects.using(database).unblock_keys(
            ordering_keys, skipping=registry.skipping()
        ):
            wake(database, payload=URGENT)
    except Error as error:
        logger.warning(
            "database %r is away; %d ordering keys stay blocked: %s",
            database,
            len(ordering_keys),
            str(error).strip(),
            exc_info=not is_outage(error),
        )
        return ordering_keys
    return set()


# The relay that commits a dispatch, or a transactional handler, may have locked a row. The statement skips
# locked rows, so that they do not delay the other confirmations, and their outcomes are retried.
# `replaceable_states` explains the states. A delivery that did not run keeps its age.
# The arrays make the planner look up rows by id, as it would rather read all of a small table. Nearly all
# outcomes are successes, which need only the identity. A row of the same id and another event is another
# delivery: its table was truncated or restored after the dispatch.
_CONFIRM = """
WITH outcome AS (
    SELECT id, event_id, 'succeeded' AS state, '' AS error, interval '0' AS wait, '' AS waits_for,
           '' AS message_options, '' AS result
    FROM unnest(%s::bigint[], %s::uuid[]) AS o(id, event_id)
    UNION ALL
    SELECT * FROM unnest(
        %s::bigint[], %s::uuid[], %s::text[], %s::text[], %s::interval[], %s::text[], %s::text[], %s::text[]
    )
), locked AS (
    SELECT d.id FROM outbox_delivery d JOIN outcome o USING (id, event_id)
    WHERE d.id = ANY(ARRAY(SELECT id FROM outcome))
      AND (d.state IN ('pending', 'dispatched') OR (d.state = 'failed' AND o.state = 'succeeded'))
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE outbox_delivery d SET
    state = o.state,
    error = CASE WHEN o.error = '' THEN d.error ELSE o.error END,
    waits_for = CASE WHEN o.state = 'pending' THEN o.waits_for ELSE d.waits_for END,
    available_at = CASE WHEN o.state = 'pending' THEN statement_timestamp() + o.wait ELSE d.available_at END,
    due_since = CASE WHEN o.state = 'pending' AND o.result = '' THEN coalesce(
        d.due_since,
        CASE d.state WHEN 'dispatched' THEN least(d.available_at, d.dispatched_at) ELSE d.available_at END
    ) END,
    confirm_by = NULL,
    finished_at = CASE WHEN o.state <> 'pending' THEN statement_timestamp() END,
    message_options = CASE WHEN o.message_options = '' THEN d.message_options
                           ELSE nullif(o.message_options::jsonb, '{}') END
FROM outcome o
WHERE d.id = o.id AND d.event_id = o.event_id AND d.id = ANY(ARRAY(SELECT id FROM locked))
RETURNING d.id, d.event_id
"""

_COLUMNS = ("state", "error", "wait", "waits_for", "message_options", "result")


def confirm(outcomes: Sequence[Outcome], database: str) -> tuple[list[Outcome], set[DeliveryRef]]:
    """Write outcomes in one statement.

    Returns:
        The outcomes whose rows are locked, and the changed deliveries.
    """
    if not outcomes:
        return [], set()
    if connections[database].vendor != "postgresql":
        changed = {one.delivery for one in outcomes if _confirm_portably(one, database)}
        _return_unstarted(outcomes, changed, database)
        return [], changed
    plain = [one for one in outcomes if one.state == _State.SUCCEEDED]
    others = [one for one in outcomes if one.state != _State.SUCCEEDED]
    columns = [[getattr(one, name) for one in others] for name in _COLUMNS]
    with connections[database].cursor() as cursor:
        cursor.execute(_CONFIRM, [*_arrays(plain), *_arrays(others), *columns])
        if cursor.rowcount == len(outcomes):
            # Usually; to read the rows would take a third of the client's time.
            written = {one.delivery for one in outcomes}
        else:
            written = {DeliveryRef(pk, str(event_id)) for pk, event_id in cursor.fetchall()}
    _return_unstarted(others, written, database)
    if len(written) == len(outcomes):
        return [], written
    missed = [outcome for outcome in outcomes if outcome.delivery not in written]
    return _locked(missed, database), written


def _arrays(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """Return the ids of deliveries and of their events."""
    # As PostgreSQL's array literals: psycopg takes ten times as long to adapt a list.
    ids = ",".join([str(one.delivery.id) for one in outcomes])
    return f"{{{ids}}}", f"{{{','.join([one.delivery.event_id for one in outcomes])}}}"


def _return_unstarted(outcomes: Sequence[Outcome], written: set[DeliveryRef], database: str) -> None:
    """Undo the attempts of deliveries that did not run."""
    unstarted = [one.delivery_id for one in outcomes if one.unstarted and one.delivery in written]
    if unstarted:
        Delivery.objects.using(database).filter(pk__in=unstarted, attempts__gt=0).update(
            attempts=F("attempts") - 1
        )


def _locked(missed: Sequence[Outcome], database: str) -> list[Outcome]:
    deliveries = Delivery.objects.using(database).filter(pk__in=[outcome.delivery_id for outcome in missed])
    rows = deliveries.values_list("pk", "event_id", "state")
    states = {DeliveryRef(pk, str(event_id)): state for pk, event_id, state in rows}
    for outcome in missed:
        if outcome.delivery not in states:
            logger.warning(
                "delivery %d of event %s no longer exists; its outcome is dropped", *outcome.delivery
            )
    return [outcome for outcome in missed if states.get(outcome.delivery) in replaceable_states(outcome)]


def _confirm_portably(outcome: Outcome, database: str) -> bool:
    pk, event_id = outcome.delivery
    open_now = Q(pk=pk, event_id=event_id, state__in=replaceable_states(outcome))
    changes: dict[str, object] = {"state": outcome.state, "confirm_by": None, "finished_at": None}
    if outcome.error:
        changes["error"] = outcome.error
    if outcome.state == _State.PENDING:
        changes |= {"available_at": Now() + outcome.wait, "waits_for": outcome.waits_for}
        changes["due_since"] = None if outcome.result else DUE_SINCE
    else:
        changes["finished_at"] = Now()
    if outcome.message_options:
        changes["message_options"] = json.loads(outcome.message_options) or None
    return bool(Delivery.objects.using(database).filter(open_now).update(**changes))

"""One claimed message of `deliver`: how it is claimed, encoded and confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dramatiq
from django.db import connections, transaction
from django.db.models import Q, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Greatest, Now

from outbox.conf import get_settings
from outbox.confirmations import confirm
from outbox.confirmations.outcome import Outcome
from outbox.errors import OutboxError
from outbox.models import Delivery, DeliveryQuerySet, HandlerStats, PausedHandler, Tally
from outbox.models.clock import from_project, to_column
from outbox.models.ordering_keys import BEFORE_ALL
from outbox.registry import registry

# The testing kit uses the relay's claim and messages, so that tests run the messages of production.
from relay.claim.claiming import MAX_BATCH_BYTES
from relay.claim.portable import PortableClaim
from relay.claimed_delivery import ClaimedDelivery
from relay.messages.batch import OutgoingBatch
from relay.messages.single import OutgoingMessage
from relay.messages.template import Kind, Template

UNBLOCK_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class ClaimOptions:
    """Which deliveries `deliver` claims.

    Args:
        handlers: only deliveries to these handlers; None for all.
        now: deliveries that are due by this moment are due.
        ahead: deliveries that the database's clock makes due within this time are due.
    """

    handlers: Sequence[str] | None
    now: datetime | None
    ahead: timedelta

    def claim_from(self, database: str) -> ClaimedMessage | None:
        """Claim the next message within the current transaction, None if nothing is due."""
        _unblock(database)
        claim = PortableClaim(
            database=database,
            limit=1,
            max_bytes=MAX_BATCH_BYTES,
            where=self._where(database),
            now=self._clock(database),
        )
        more = True
        while more:
            # A claim may find nothing but a delivery to block.
            rows, more, *_ = claim.claim_ordered(skipping=registry.skipping(), with_keyless=True)
            if rows:
                renamed = [row._replace(handler=registry.name_of(row.handler)) for row in rows]
                return ClaimedMessage(database=database, rows=renamed, batched=False)
        for name, handler in registry.handlers.items():
            if handler.batch is not None and (rows := claim.claim_batch(name, handler.batch).rows):
                return ClaimedMessage(database=database, rows=rows, batched=True)
        return None

    def _where(self, database: str) -> Q:
        # The relay claims deliveries of a paused handler and puts them to wait; here they stay as they are.
        where = ~Q(handler__in=PausedHandler.objects.using(database).names())
        if self.handlers is None:
            return where
        former = [old for old, new in registry.former_names().items() if new in self.handlers]
        return where & Q(handler__in=[*self.handlers, *former])

    def _clock(self, database: str) -> Combinable:
        # Always a sum: SQLite compares times as text, and writes a sum with more digits than Now().
        now = Now() + self.ahead
        return (
            now
            if self.now is None
            else Greatest(now, Value(to_column(from_project(self.now), connections[database])))
        )


@dataclass(frozen=True, kw_only=True)
class ClaimedMessage:
    """Claimed deliveries that one message carries: one, unless the handler is batched."""

    database: str
    rows: Sequence[ClaimedDelivery]
    batched: bool

    @property
    def handler(self) -> str:
        """The name of the handler."""
        return self.rows[0].handler

    @property
    def unexpired(self) -> list[ClaimedDelivery]:
        """The deliveries that are sent."""
        return [row for row in self.rows if not row.expired]

    def discard_expired(self) -> int:
        """Discard the deliveries whose event has expired; return how many."""
        return self._deliveries([row for row in self.rows if row.expired]).expire()

    def fail(self, error: str) -> int:
        """Mark the other deliveries as failed, with the reason; return how many."""
        return self._deliveries(self.unexpired).fail(error)

    def message(self) -> dramatiq.Message[Any]:
        """Return the message that the relay would send, decoded as a worker decodes it.

        Raises:
            UnknownHandler: if the handler is not registered.
            OutboxError: if an event does not exist.
            ValueError: if an event cannot be sent.
        """
        handler, rows = registry.get(self.handler), self.unexpired
        for row in rows:
            if not row.payload:
                raise OutboxError(
                    f"the event {row.event_id} of a delivery to {row.handler!r} does not exist; "
                    "publish events with outbox.publish()"
                )
        kind: Kind = "actor" if handler.kind == "actor" else "event"
        template = Template(handler.name, actor=handler.actor, kind=kind, database=self.database)
        outgoing = OutgoingBatch(rows, template) if self.batched else OutgoingMessage(rows[0], template)
        return dramatiq.Message.decode(outgoing.body())

    def confirm(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes as a worker's flush does, but at once and in the test's own transaction."""
        tallies: dict[str, Tally] = {}
        for outcome in outcomes:
            if outcome.result:
                tallies.setdefault(outcome.handler, Tally()).count(outcome.result, outcome.duration_s)
        with transaction.atomic(using=self.database):
            # A transactional handler has recorded its success itself.
            confirm([outcome for outcome in outcomes if outcome.state], self.database)
            if get_settings().stats:
                HandlerStats.objects.using(self.database).add(tallies)

    def _deliveries(self, rows: Sequence[ClaimedDelivery]) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self.database)
        return deliveries.filter(pk__in=[row.delivery_id for row in rows])


def _unblock(database: str) -> None:
    """Unblock ordering keys as a relay does between claims: an earlier delivery may have been settled."""
    deliveries = Delivery.objects.using(database)
    keys, _after = deliveries.next_keys(after=BEFORE_ALL, limit=UNBLOCK_LIMIT)
    deliveries.unblock_keys(keys, skipping=registry.skipping())

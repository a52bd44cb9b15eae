"""Dispatch: claimed deliveries become Dramatiq messages, grouped by broker, and go out."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

import dramatiq

from outbox.conf import get_settings
from outbox.errors import BrokerUnavailable
from outbox.lifecycle import delivery_failed, delivery_refused
from outbox.registry import Handler, registry
from outbox.versions import WRITTEN, why_unreadable

from .batches import OutgoingBatch, OutgoingPack
from .claimed import Claimed
from .copies import Held, Overdue
from .marking import Outcome
from .messages import Outgoing
from .packing import packs_of
from .publishers import PartlySent, Publisher, Refusal, publisher_for
from .splicing import Kind, Template

UNKNOWN_HANDLER_DELAY = timedelta(seconds=30)
UNREADABLE_DELAY = timedelta(seconds=30)
BROKER_AWAY_DELAY = timedelta(seconds=5)

EVENT_MISSING = "the event of this delivery does not exist; its row was written or removed by hand"


class Dispatcher:
    """Sends batches of one database's deliveries to the brokers of their handlers.

    Attributes:
        paused: names of handlers whose deliveries are held instead.
    """

    def __init__(self, *, database: str) -> None:
        self.paused: frozenset[str] = frozenset()
        self._database = database
        self._publishers: dict[dramatiq.Broker, Publisher] = {}
        self._away: dict[dramatiq.Broker, BrokerUnavailable] = {}

    def probe(self) -> None:
        """Look whether a broker can be reached, before anything is claimed.

        Raises:
            BrokerUnavailable: if none can.
        """
        self._away.clear()
        brokers = self._brokers()
        for broker in brokers:
            try:
                self._publisher(broker).probe()
            except BrokerUnavailable as problem:
                self._away[broker] = problem
        if self._away and len(self._away) == len(brokers):
            raise next(iter(self._away.values()))

    def send(self, claimed: Iterable[Claimed], *, timeout_s: float) -> Outcome:
        """Send a batch; a message that cannot be sent does not keep the others.

        Raises:
            BrokerUnavailable: if nothing of the batch is known to have gone.
        """
        outcome = Outcome()
        groups: dict[dramatiq.Broker, list[Outgoing]] = defaultdict(list)
        packed: dict[str, list[Claimed]] = defaultdict(list)
        heaps: dict[str, tuple[Template, list[Outgoing]]] = {}
        # What fails in a pack goes back to the table, which takes nothing back without confirmations.
        packs = get_settings().confirm
        for one in claimed:
            handler = self._handler_of(one, outcome)
            if handler is None:
                continue
            if handler.pack and packs:
                packed[handler.name].append(one)
                continue
            heap = heaps.get(one.handler)
            if heap is None:
                # The group is one of all handlers of a broker, in the order of the claim.
                heap = heaps[one.handler] = self._template(handler), groups[handler.actor.broker]
            template, group = heap
            group.append(Outgoing(one, template))
        for name, rows in packed.items():
            groups[registry.get(name).actor.broker] += self._packs(registry.get(name), rows)
        self._send_groups(groups, outcome, timeout_s)
        return outcome

    def send_batch(self, claimed: Sequence[Claimed], *, timeout_s: float) -> Outcome:
        """Send the deliveries of one batched handler as one message.

        Raises:
            BrokerUnavailable: if it is not known to have gone.
        """
        outcome = Outcome()
        ready = [one for one in claimed if self._handler_of(one, outcome) is not None]
        if ready:
            handler = registry.get(ready[0].handler)
            batch = OutgoingBatch(ready, self._template(handler))
            self._send_groups({handler.actor.broker: [batch]}, outcome, timeout_s)
        return outcome

    def holds(self, overdue: Sequence[Overdue], *, timeout_s: float) -> Held:
        """Ask the brokers which messages they still have; those of unknown handlers they have not."""
        held = Held()
        groups: dict[dramatiq.Broker, list[Overdue]] = defaultdict(list)
        for row in overdue:
            if handler := registry.handlers.get(row.handler):
                groups[handler.actor.broker].append(
                    row._replace(
                        queue=handler.queue, batched=handler.batch is not None, pack=handler.pack or 0
                    )
                )
        for broker, rows in groups.items():
            try:
                held.there |= self._publisher(broker).holds(rows, timeout_s=timeout_s)
            except BrokerUnavailable:
                held.unknown |= {row.delivery_id for row in rows}
        return held

    def close(self) -> None:
        """Close the connections to the brokers."""
        for publisher in self._publishers.values():
            publisher.close()
        self._publishers.clear()

    def _send_groups(
        self, groups: Mapping[dramatiq.Broker, Sequence[Outgoing]], outcome: Outcome, timeout_s: float
    ) -> None:
        problems: list[BrokerUnavailable] = []
        # The claim's locks wait for all brokers together, so they share the time.
        share_s = timeout_s / max(len(groups), 1)
        for broker, outgoing in groups.items():
            if broker in self._away:
                # Another broker can be reached: its messages must not wait for this one's.
                _release(outgoing, self._away[broker], outcome, BROKER_AWAY_DELAY)
                continue
            try:
                self._send_to(broker, outgoing, outcome, share_s)
            except BrokerUnavailable as problem:
                problems.append(problem)
        if problems and not outcome.sent:
            raise problems[0]

    def _send_to(
        self, broker: dramatiq.Broker, outgoing: Sequence[Outgoing], outcome: Outcome, timeout_s: float
    ) -> None:
        """Send messages to one broker, and what a refused pack holds one by one, to find the bad one.

        Raises:
            BrokerUnavailable: once it is noted in the outcome what has not gone.
        """
        deadline = time.monotonic() + timeout_s
        try:
            unsent: Sequence[Outgoing] = ()
            refusals: Sequence[Refusal] = self._publisher(broker).publish(outgoing, timeout_s=timeout_s)
        except PartlySent as partly:
            unsent, refusals = partly.unsent, partly.refusals
            _release(unsent, partly, outcome, timedelta())
        except BrokerUnavailable as problem:
            _release(outgoing, problem, outcome, BROKER_AWAY_DELAY)
            raise
        outcome.sent += _rows_without([*unsent, *(refusal.outgoing for refusal in refusals)], outgoing)
        again: list[Outgoing] = []
        for refused, error in refusals:
            if isinstance(refused, OutgoingPack) and len(refused.rows) > 1 and time.monotonic() < deadline:
                again += refused.one_by_one()
            else:
                outcome.refused += [(row, error) for row in refused.rows]
        if again:
            self._send_to(broker, again, outcome, deadline - time.monotonic())

    def _packs(self, handler: Handler, rows: list[Claimed]) -> list[Outgoing]:
        size = handler.pack or 1
        rows.sort(key=lambda row: row.delivery_id)
        template = self._template(handler)
        return [OutgoingPack(pack, template, size=size) for pack in packs_of(rows, size)]

    def _template(self, handler: Handler) -> Template:
        kind: Kind = "actor" if handler.kind == "actor" else "event"
        return Template(handler.name, actor=handler.actor, kind=kind, database=self._database)

    def _handler_of(self, claimed: Claimed, outcome: Outcome) -> Handler | None:
        """Return the handler of a delivery that can be sent; note in the outcome why another cannot."""
        handler = registry.handlers.get(claimed.handler)
        # Before anything else that the row says, whose meaning may be another in that version.
        if claimed.version != WRITTEN and (unreadable := why_unreadable(claimed.version)):
            reason = f"the relay on {socket.gethostname()} cannot read the event: {unreadable}"
            outcome.released.append((claimed, reason, UNREADABLE_DELAY))
            return None
        if not claimed.payload:
            outcome.failed.append((claimed, EVENT_MISSING))
            return None
        if claimed.expired:
            outcome.expired.append(claimed)
            return None
        if claimed.handler in self.paused:
            outcome.paused.append(claimed)
            return None
        if handler is None:
            reason = f"the relay on {socket.gethostname()} does not know the handler {claimed.handler!r}"
            outcome.released.append((claimed, reason, UNKNOWN_HANDLER_DELAY))
        return handler

    def _brokers(self) -> set[dramatiq.Broker]:
        return {handler.actor.broker for handler in registry.handlers.values()}

    def _publisher(self, broker: dramatiq.Broker) -> Publisher:
        publisher = self._publishers.get(broker)
        if publisher is None:
            publisher = self._publishers[broker] = publisher_for(broker)
        return publisher


def _rows_without(left_out: Iterable[Outgoing], outgoing: Iterable[Outgoing]) -> list[Claimed]:
    without = {id(one) for one in left_out}
    return [row for one in outgoing if not without or id(one) not in without for row in one.rows]


def _release(
    outgoing: Iterable[Outgoing], problem: BrokerUnavailable, outcome: Outcome, delay: timedelta
) -> None:
    reason = f"the broker is away: {problem}"
    outcome.released += [(row, reason, delay) for one in outgoing for row in one.rows]


def tell(outcome: Outcome, *, database: str) -> None:
    """Say what did not go, once that is committed."""
    for signal, rows in ((delivery_failed, outcome.failed), (delivery_refused, outcome.refused)):
        for claimed, error in rows:
            signal.send_robust(
                Dispatcher,
                database=database,
                delivery_id=claimed.delivery_id,
                handler=claimed.handler,
                error=error,
            )

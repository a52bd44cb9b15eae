"""Dispatch: the relay sends claimed deliveries as Dramatiq messages, grouped by broker."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import timedelta

import dramatiq

from outbox.errors import BrokerUnavailable
from outbox.registry import Handler, registry
from outbox.versions import WRITTEN, why_unreadable
from relay.messages.batch import OutgoingBatch
from relay.messages.dispatch_ids import BrokerContents, OverdueDelivery
from relay.messages.single import OutgoingMessage
from relay.messages.template import Kind, Template

from .claimed_delivery import ClaimedDelivery
from .handler_changes import IMPORTED, is_early, is_paused, may_import_ordered
from .losses import Losses
from .marking import DispatchResult
from .publishers import PartlySent, Publisher, Refusal, publisher_for

UNREADABLE_DELAY = timedelta(seconds=30)
RENAMED_DELAY = timedelta(seconds=1)

RENAMED = "a delivery with its ordering key still has a former name of the handler"
EVENT_MISSING = "the event of this delivery does not exist; its row was written or removed by hand"


class Dispatcher:
    """Sends batches of one database's deliveries to the brokers of their handlers.

    Attributes:
        losses: the losses of these brokers.
    """

    def __init__(self, *, database: str) -> None:
        self._database = database
        self._publishers: dict[dramatiq.Broker, Publisher] = {}
        self._unreachable: dict[dramatiq.Broker, BrokerUnavailable] = {}
        # The deliveries of the last batch that was lost.
        self._failed: list[int] = []
        self.losses = Losses(database=database, publishers=self.publishers)

    def probe(self) -> None:
        """Check before a claim that at least one broker can be reached, and record losses of messages.

        Raises:
            BrokerUnavailable: if no broker can be reached.
        """
        self._unreachable.clear()
        self.losses.markers.expect()
        brokers = self._brokers()
        for broker in brokers:
            try:
                self._publisher(broker).probe()
            except BrokerUnavailable as problem:
                # Without its traceback, which would keep the rows of the last batch.
                self._unreachable[broker] = type(problem)(str(problem))
        if self._unreachable and len(self._unreachable) == len(brokers):
            raise next(iter(self._unreachable.values()))
        self.losses.markers.note_losses()

    def send(
        self,
        claimed: Iterable[ClaimedDelivery],
        *,
        timeout_s: float,
        paused: Collection[str] = (),
        running: Container[tuple[str, str]] | None = None,
    ) -> DispatchResult:
        """Send the deliveries of one claim; a message that cannot be sent does not delay the others.

        Args:
            paused: handlers whose deliveries are not sent.
            running: handlers and ordering keys that run under a former name, whose deliveries are not sent;
                None for deliveries without an ordering key.

        Raises:
            BrokerUnavailable: if no message is known to have been sent.
        """
        result = DispatchResult()
        messages: dict[dramatiq.Broker, list[OutgoingMessage]] = defaultdict(list)
        # By handler: the template of its messages, and the list of its broker, in the order of the claim.
        routes: dict[str, tuple[Template, list[OutgoingMessage]]] = {}
        unordered = running is None and may_import_ordered()
        for row in claimed:
            handler = self._sendable_handler(row, result, paused, running)
            if handler is None:
                continue
            if unordered and handler.ordered and row.key:
                result.postponed.append((row, IMPORTED, timedelta()))
                continue
            if row.handler != handler.name:
                row = row._replace(handler=handler.name)
            route = routes.get(row.handler)
            if route is None:
                route = routes[row.handler] = (self._template(handler), messages[handler.actor.broker])
            template, messages_to_broker = route
            messages_to_broker.append(OutgoingMessage(row, template))
        self._send_messages(messages, result, timeout_s)
        return result

    def send_batch(
        self,
        claimed: Sequence[ClaimedDelivery],
        *,
        timeout_s: float,
        paused: Collection[str] = (),
    ) -> DispatchResult:
        """Send the deliveries of one batch handler as one message.

        Args:
            paused: handlers whose deliveries are not sent.

        Raises:
            BrokerUnavailable: if the message is not known to have been sent.
        """
        result = DispatchResult()
        rows = [row for row in claimed if self._sendable_handler(row, result, paused) is not None]
        if rows:
            handler = registry.get(rows[0].handler)
            batch = OutgoingBatch(rows, self._template(handler))
            self._send_messages({handler.actor.broker: [batch]}, result, timeout_s)
        return result

    def still_queued(self, overdue: Sequence[OverdueDelivery], *, timeout_s: float) -> BrokerContents:
        """Ask the brokers which messages they still have; an unknown handler counts as having none.

        Args:
            timeout_s: the time for the answer of each broker.
        """
        contents = BrokerContents()
        by_broker: dict[dramatiq.Broker, list[OverdueDelivery]] = defaultdict(list)
        for row in overdue:
            if handler := registry.find(row.handler):
                by_broker[handler.actor.broker].append(row.with_handler(handler))
        for broker, rows in by_broker.items():
            try:
                contents.present |= self._publisher(broker).still_queued(rows, timeout_s=timeout_s)
            except BrokerUnavailable:
                contents.unknown |= {row.delivery_id for row in rows}
        return contents

    def close(self) -> None:
        """Close the connections to the brokers."""
        for publisher in self._publishers.values():
            publisher.close()
        self._publishers.clear()

    def _send_messages(
        self,
        messages: Mapping[dramatiq.Broker, Sequence[OutgoingMessage]],
        result: DispatchResult,
        timeout_s: float,
    ) -> None:
        # The claim keeps its row locks until all brokers have answered, so they share the time.
        share_s = timeout_s / max(len(messages), 1)
        for broker, outgoing in messages.items():
            if broker in self._unreachable:
                # The messages to a reachable broker do not wait for this broker.
                result.unreachable = self._unreachable[broker]
                result.postpone(outgoing, result.unreachable)
                continue
            try:
                self._send_to(broker, outgoing, result, share_s)
            except BrokerUnavailable as problem:
                result.postpone(outgoing, problem)
                result.shortfall, result.lost_batch = str(problem), True
        if result.lost_batch and not result.sent and not self._fails_alone_again(messages):
            raise BrokerUnavailable(result.shortfall)

    def _fails_alone_again(self, messages: Mapping[dramatiq.Broker, Sequence[OutgoingMessage]]) -> bool:
        """Return whether a lone message failed twice: it is postponed, so that others are sent before it."""
        failed = [message.delivery_id for outgoing in messages.values() for message in outgoing]
        again = len(failed) == 1 and failed == self._failed
        self._failed = failed
        return again

    def _send_to(
        self,
        broker: dramatiq.Broker,
        outgoing: Sequence[OutgoingMessage],
        result: DispatchResult,
        timeout_s: float,
    ) -> None:
        """Send messages to one broker, and add the result.

        Raises:
            BrokerUnavailable: if no message is known to have been sent.
        """
        unsent: Sequence[OutgoingMessage] = ()
        try:
            refusals: Sequence[Refusal] = self._publisher(broker).publish(outgoing, timeout_s=timeout_s)
        except PartlySent as partly:
            unsent, refusals = partly.unsent, partly.refusals
            result.postpone(unsent, partly, delay=timedelta())
            result.shortfall = str(partly)
        result.add_sent(outgoing, unsent=[*unsent, *(refusal.outgoing for refusal in refusals)])
        for refusal in refusals:
            result.add_refusal(refusal)

    def _template(self, handler: Handler) -> Template:
        kind: Kind = "actor" if handler.kind == "actor" else "event"
        return Template(handler.name, actor=handler.actor, kind=kind, database=self._database)

    def _sendable_handler(
        self,
        claimed: ClaimedDelivery,
        result: DispatchResult,
        paused: Collection[str],
        running: Container[tuple[str, str]] | None = None,
    ) -> Handler | None:
        """Return the handler of a delivery that can be sent; otherwise add the reason to the result."""
        handler = registry.find(claimed.handler)
        # Checked first: in another version the other columns may have another meaning.
        if claimed.version != WRITTEN and (unreadable := why_unreadable(claimed.version)):
            reason = f"the relay on {socket.gethostname()} cannot read the event: {unreadable}"
            result.postponed.append((claimed, reason, UNREADABLE_DELAY))
            return None
        if not claimed.payload:
            result.failed.append((claimed, EVENT_MISSING))
            return None
        if claimed.expired:
            result.expired.append(claimed)
            return None
        if paused and is_paused(claimed, handler, paused):
            result.paused.append(claimed)
            return None
        if handler is None:
            result.unknown.append(claimed)
        elif running is not None and is_early(claimed, handler, running):
            result.postponed.append((claimed, RENAMED, RENAMED_DELAY))
            return None
        return handler

    def publishers(self) -> list[tuple[dramatiq.Broker, Publisher]]:
        """Return the publisher of each broker."""
        return [(broker, self._publisher(broker)) for broker in self._brokers()]

    def _brokers(self) -> set[dramatiq.Broker]:
        return {handler.actor.broker for handler in registry.handlers.values()}

    def _publisher(self, broker: dramatiq.Broker) -> Publisher:
        if broker not in self._publishers:
            self._publishers[broker] = publisher_for(broker)
        return self._publishers[broker]

"""Hand messages to the worker in this process, when the claim has committed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from django.db import transaction

from outbox.brokers.embedded import EmbeddedBroker, EmbeddedMessage
from outbox.confirmations import confirmations
from outbox.errors import BrokerUnavailable
from relay.messages.dispatch_ids import OverdueDelivery
from relay.messages.single import OutgoingMessage

from .base import Refusal, describe, has_enqueue_hooks
from .generic import GenericPublisher


class EmbeddedPublisher(GenericPublisher):
    """Add messages to an `EmbeddedBroker` after the commit, so that no run comes before it."""

    finds_messages = True

    def __init__(self, broker: EmbeddedBroker) -> None:
        super().__init__(broker)
        self._memory = broker

    def probe(self) -> None:
        """Check that a worker of this process runs the messages.

        Raises:
            BrokerUnavailable: if none does.
        """
        if not self._memory.is_open:
            raise BrokerUnavailable(
                "this relay has no worker for EmbeddedBroker; start it with run_relay --with-worker"
            )

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> list[Refusal]:
        """Build the messages, and add them to the broker when the current transaction commits."""
        self.probe()
        hooked = has_enqueue_hooks(self._memory)
        refusals: list[Refusal] = []
        messages: list[EmbeddedMessage] = []
        for item in outgoing:
            try:
                message = item.message()
                if hooked:
                    self._memory.emit_before("enqueue", message, None)
                deliveries = [row.delivery_id for row in item.rows]
                database = item.template.database
                messages.append(EmbeddedMessage(message, database=database, deliveries=deliveries))
            except Exception as error:  # one malformed row or failing hook does not stop the others
                refusals.append(Refusal(item, describe(error)))
        if messages:
            transaction.on_commit(partial(self._add, messages, hooked), using=messages[0].database)
        return refusals

    def _add(self, messages: Sequence[EmbeddedMessage], hooked: bool) -> None:
        self._memory.add(messages)
        for message in messages if hooked else ():
            self._memory.emit_after("enqueue", message, None)

    def still_queued(
        self, overdue: Sequence[OverdueDelivery], *, timeout_s: float, after_loss: bool = False
    ) -> set[int]:
        """Return the deliveries whose message this process has, or whose outcome it has not written yet."""
        return self._memory.deliveries() | confirmations.unwritten().keys()

"""One run of a handler in a worker: what the middleware, the actor and the confirmations share."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .events import ReceivedEvent
from .versions import why_unreadable

# What reading a message raises that has not the form of the outbox's own.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(slots=True)
class Run:
    """One message of the outbox, from before its handler runs until its outcome is known.

    Args:
        deliveries: the deliveries it carries, one unless the handler is batched or packed; of a pack, those
            that have no outcome yet.
        events: their events, in the same order; none if the message is unreadable.
        batched: whether the message carries a list.
        packed: whether each of the list is a run of its own.
        unreadable: why this process must give the message back, empty if it can read it.
        lane: the key, if the handler is ordered.
        redelivered: how often the relay has sent the delivery again.
        retries: how often Dramatiq has; of one in a pack, how often it has been tried before.
        tried: for those in a pack that were tried before, how often.
        suspects: those in a pack that a worker may have died of.
        retry_delay_ms: when Dramatiq has enqueued a retry, how long until it is due; None otherwise.
        discarded: the reasons of deliveries that need not run.
        split: the error of a batch whose deliveries are to go one by one; empty otherwise.
        settled: success is recorded already, in the handler's own transaction.
        left: another copy of the message has settled the delivery, so that this one has no outcome.
    """

    database: str
    handler: str
    message_id: str
    deliveries: list[int]
    events: list[ReceivedEvent]
    batched: bool = False
    packed: bool = False
    unreadable: str = ""
    lane: str = ""
    redelivered: int = 0
    retries: int = 0
    tried: Mapping[int, int] = field(default_factory=dict)
    suspects: Set[int] = frozenset()
    duration_s: float = 0.0
    retry_delay_ms: int | None = None
    discarded: dict[int, str] = field(default_factory=dict)
    split: str = ""
    settled: bool = False
    left: bool = False

    @classmethod
    def from_message(cls, message: Any) -> Run | None:
        """Read the run from a message; None for one that the outbox did not send.

        Raises:
            MALFORMED: one of these, if its options are malformed.
        """
        all_options = message.options
        options = all_options.get("outbox")
        if type(options) is not dict and not isinstance(options, Mapping):
            return None
        listed = options.get("pack") or options.get("deliveries")
        unreadable = why_unreadable(options["v"])
        run = cls(
            options["database"],
            message.actor_name,
            message.message_id,
            [options["delivery"]] if listed is None else list(listed),
            [],
            batched=listed is not None,
            packed="pack" in options,
            unreadable=unreadable,
            redelivered=options.get("redelivered", 0),
            retries=all_options.get("retries", 0),
        )
        if not unreadable:
            read = ReceivedEvent.from_message
            if listed is None:
                run.events.append(read(options.get("event") or message.args[0]))
            else:
                run.events += map(read, message.args[0])
            if "retries" in options:
                run.tried = dict(zip(options["pack"], options["retries"], strict=True))
        return run

    def first(self, *, ordered: bool = False) -> Run:
        """Return the first delivery of a pack as a run of its own."""
        (delivery, *_), (event, *_) = self.deliveries, self.events
        return Run(
            self.database,
            self.handler,
            self.message_id,
            [delivery],
            [event],
            lane=event.key if ordered else "",
            redelivered=self.redelivered,
            retries=self.tried.get(delivery, 0),
        )

    def keep(self, deliveries: Iterable[int]) -> None:
        """Keep these deliveries, in this order, and their events."""
        events = dict(zip(self.deliveries, self.events, strict=True))
        self.deliveries = list(deliveries)
        self.events = [events[delivery] for delivery in self.deliveries]

    @property
    def event(self) -> ReceivedEvent:
        """Return the event of a run that has one."""
        return self.events[0]

    @property
    def undecided(self) -> list[int]:
        """Return the deliveries that the outcome of the run decides."""
        return [delivery for delivery in self.deliveries if delivery not in self.discarded]


current_run: ContextVar[Run | None] = ContextVar("outbox_run", default=None)


def describe(exception: BaseException) -> str:
    """Return an error with its traceback, as it is kept on the delivery."""
    return "".join(traceback.format_exception(exception))

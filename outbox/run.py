"""The run of a handler in a worker, as the middleware, the actor and the confirmations see it."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from outbox.events import DeliveryRef, ReceivedEvent
from outbox.observability.tracing import Trace
from outbox.versions import why_unreadable

# The errors of reading a message whose outbox options are malformed.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError)


class RecordedRetry(NamedTuple):
    """A retry of a run, as Dramatiq's `Retries` has decided it.

    Args:
        delay: the time until it is due.
        options: the options of the next message, as JSON.
    """

    delay: timedelta
    options: str


class RunObserver(Protocol):
    """Follows one run of a handler in its worker."""

    def started(self) -> None:
        """Note that the function runs next; an error fails the run."""

    def ended(self, error: BaseException | None) -> None:
        """Note the error of the run, before its outcome is reported."""

    def reported(self, *, failed: bool | None) -> None:
        """Note the outcome that was reported: whether the delivery failed; None if it runs again."""

    def withdrawn(self) -> None:
        """Note that the run was no run, as another message of the delivery had settled it."""


@dataclass(slots=True)
class Run:
    """One message of the outbox, from before its handler runs until its outcome is known.

    Args:
        database: the alias of the database of the deliveries.
        handler: the name of the handler.
        message_id: the id of the Dramatiq message.
        deliveries: the deliveries of the message, one unless the handler is batched.
        events: the events of the deliveries, in the same order; none if the message is unreadable.
        batched: whether the message contains a list.
        unreadable: the reason why this process cannot read the message; empty if it can.
        ordering_key: the key, if the handler is ordered.
        earlier_messages: the number of messages of the delivery that the relay sent before this message.
        retries: the number of Dramatiq's retries.
        retry: the retry that Dramatiq's `Retries` wants; None if it wants none.
        discarded: the reasons of deliveries that need no run.
        split_error: the error of a batch whose deliveries run one by one from now on; empty otherwise.
        settled: whether the handler's own transaction has recorded the success.
        duplicate: whether another message has settled the delivery, so that this run has no outcome.
        started: whether the worker has called the handler.
        trace: the blocks of the tracers around the run; None if there are none.
        result: for the tracers: `succeeded`, `retried`, `failed`, `put_off` or `discarded` once it is known.
        error: for the tracers: the error of the run.
        observer: follows the run; None for most handlers.
    """

    database: str
    handler: str
    message_id: str
    deliveries: list[DeliveryRef]
    events: list[ReceivedEvent]
    batched: bool = False
    unreadable: str = ""
    ordering_key: str = ""
    earlier_messages: int = 0
    retries: int = 0
    duration_s: float = 0.0
    retry: RecordedRetry | None = None
    discarded: dict[DeliveryRef, str] = field(default_factory=dict)
    split_error: str = ""
    settled: bool = False
    duplicate: bool = False
    started: bool = False
    trace: Trace | None = None
    result: str = ""
    error: BaseException | None = None
    observer: RunObserver | None = None

    @classmethod
    def from_message(cls, message: Any) -> Run | None:
        """Read the run from a message; return None if the outbox did not send the message.

        Raises:
            MALFORMED: one of these, if its options are malformed.
        """
        # A proxy looks attributes up in Python code.
        message = getattr(message, "_message", message)
        all_options = message.options
        options = all_options.get("outbox")
        if type(options) is not dict and not isinstance(options, Mapping):
            return None
        listed = options.get("deliveries")
        # These members are the same in every version, so that an unreadable message can be returned.
        envelopes = [options.get("event") or message.args[0]] if listed is None else message.args[0]
        ids = [options["delivery"]] if listed is None else listed
        unreadable = why_unreadable(options["v"])
        return cls(
            options["database"],
            message.actor_name,
            message.message_id,
            [DeliveryRef(one, event["id"]) for one, event in zip(ids, envelopes, strict=True)],
            [] if unreadable else [ReceivedEvent.from_message(event) for event in envelopes],
            batched=listed is not None,
            unreadable=unreadable,
            earlier_messages=options.get("earlier_messages", 0),
            retries=all_options.get("retries", 0),
        )

    def keep(self, deliveries: Iterable[DeliveryRef]) -> None:
        """Keep these deliveries, in this order, and their events."""
        events = dict(zip(self.deliveries, self.events, strict=True))
        self.deliveries = list(deliveries)
        self.events = [events[delivery] for delivery in self.deliveries]

    def end_trace(self, results: Iterable[str] = (), error: BaseException | None = None) -> None:
        """Leave the blocks of the tracers, if there are any.

        Args:
            results: the result of each delivery; empty for a discarded one.
            error: the error of the run, unless the run has noted it.
        """
        if self.trace is not None:
            self.result = next(filter(None, results), "discarded")
            self.error = error or self.error
            self.trace.__exit__()
            # The traceback of the error refers to the run.
            self.error = None

    @property
    def event(self) -> ReceivedEvent:
        """Return the only event."""
        return self.events[0]

    @property
    def undecided(self) -> list[DeliveryRef]:
        """Return the deliveries that get the outcome of the run."""
        return [delivery for delivery in self.deliveries if delivery not in self.discarded]


current_run: ContextVar[Run | None] = ContextVar("outbox_run", default=None)


def describe(exception: BaseException) -> str:
    """Return an error with its traceback, as text for the delivery's row."""
    return "".join(traceback.format_exception(exception))

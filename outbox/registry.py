"""The handlers of a project, by name and by topic."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import dramatiq

from .durations import LONGEST
from .errors import DuplicateHandler, RegistrationError, UnknownHandler
from .topics import check_pattern, compile_pattern

if TYPE_CHECKING:
    from outbox.run import Run, RunObserver

# A batch is one message, which a broker stores as a whole.
MAX_BATCH_SIZE = 10_000

Kind = Literal["event", "signal", "actor", "task"]

OnFailure = Literal["block", "skip"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Converts the events of a run to the arguments of the function. For an event that need not be handled, it
# adds the reason to `run.discarded`.
ArgumentsOf = Callable[["Run"], Arguments]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The batches of a handler.

    Args:
        size: events of a batch at most.
        wait: the time for which the oldest event waits for others.
    """

    size: int
    wait: timedelta

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            RegistrationError: if the size is not in 1…10,000, or the wait is negative or too long.
        """
        if not 1 <= self.size <= MAX_BATCH_SIZE:
            raise RegistrationError(f"batch_size {self.size!r} must be between 1 and {MAX_BATCH_SIZE}")
        if self.wait < timedelta():
            raise RegistrationError(f"batch_wait {self.wait!r} is negative; give a positive timedelta")
        if self.wait > LONGEST:
            raise RegistrationError(
                f"batch_wait {self.wait!r} is too long; give at most timedelta(days={LONGEST.days})"
            )


# Handlers compare and hash by identity, so that they are fast keys of caches.
@dataclass(frozen=True, kw_only=True, eq=False)
class DeliveryOptions:
    """The options of the deliveries to a handler.

    Args:
        ordered: deliver the events of one key one at a time, in order.
        on_failure: whether a failed delivery blocks its ordering key, or is skipped.
        transactional: commit the success of a delivery together with the effects of the handler.
        batch: pass lists of events to the function; None passes one event at a time.
        former_names: names of the handler in older rows and messages.
    """

    ordered: bool = False
    on_failure: OnFailure = "block"
    transactional: bool = False
    batch: BatchOptions | None = None
    former_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            RegistrationError: with the remedy.
        """
        if self.ordered and self.batch:
            raise RegistrationError("a handler is both ordered and batched; choose one of them")


@dataclass(frozen=True, kw_only=True, eq=False)
class Handler(DeliveryOptions):
    """A function to which events are delivered, and the Dramatiq actor that runs it.

    Args:
        kind: the parameters of the function: an event, a signal's arguments, or an actor's arguments.
        topics: the patterns of its topics; empty for receivers and actors, which are addressed by name.
        arguments: converts a run's events to the function's arguments; None passes the message's arguments.
        observer: makes the observer of a run; None if nothing observes its runs.
    """

    name: str
    kind: Kind
    function: Callable[..., Any]
    actor: dramatiq.Actor[..., Any]
    topics: tuple[str, ...] = ()
    arguments: ArgumentsOf | None = None
    observer: Callable[[Run], RunObserver] | None = None

    @property
    def queue(self) -> str:
        """Return the queue of its messages."""
        return self.actor.queue_name


@dataclass
class Registry:
    """All handlers of this process.

    Attributes:
        duplicates: an error message for each name that was declared twice.
        on_broker: called with the broker of each handler that is added.
        max_topics: topics whose handlers are cached; bounds the memory if a project makes up topics.
        importer: imports the module of a handler that no app declares, and declares it; returns nothing.
    """

    handlers: dict[str, Handler] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    on_broker: Callable[[dramatiq.Broker], None] | None = None
    max_topics: int = 10_000
    importer: Callable[[str], None] | None = None
    _patterns: list[tuple[re.Pattern[str], Handler]] = field(default_factory=list)
    _by_topic: dict[str, tuple[Handler, ...]] = field(default_factory=dict)
    _on_default_broker: set[str] = field(default_factory=set)
    _former: dict[str, str] | None = None

    def refuse_duplicate(self, name: str, function: Callable[..., Any]) -> None:
        """Refuse a second function under a name, and record the error.

        Raises:
            DuplicateHandler: with both functions and the remedy.
        """
        existing = self.handlers.get(name)
        if existing is None:
            return
        fact = (
            f"handler {name!r} is declared twice: {_place(existing.function)} and {_place(function)}; "
            "give one of them another name with name=…"
        )
        self.duplicates.append(fact)
        raise DuplicateHandler(fact)

    def add(self, handler: Handler) -> None:
        """Add a handler whose name has passed `refuse_duplicate`.

        Raises:
            InvalidTopic: if a pattern is malformed.
        """
        for pattern in handler.topics:
            check_pattern(pattern)
        if self.on_broker is not None:
            self.on_broker(handler.actor.broker)
        self.handlers[handler.name] = handler
        if handler.actor.broker is dramatiq.broker.global_broker:
            self._on_default_broker.add(handler.name)
        self._patterns += [(compile_pattern(pattern), handler) for pattern in handler.topics]
        self._by_topic.clear()
        self._former = None

    def left_on_replaced_broker(self, default: dramatiq.Broker | None) -> list[str]:
        """Return the handlers that were declared on the default broker of that time, which is another now."""
        return [
            name
            for name, handler in self.handlers.items()
            if name in self._on_default_broker and handler.actor.broker is not default
        ]

    def former_names(self) -> dict[str, str]:
        """Return the present names of renamed handlers by former name, without names that are declared."""
        if self._former is None:
            self._former = {
                old: name
                for name, handler in self.handlers.items()
                for old in handler.former_names
                if old not in self.handlers
            }
        return self._former

    def name_of(self, name: str) -> str:
        """Return the present name of a handler that may have been renamed."""
        return self.former_names().get(name, name)

    def find(self, name: str) -> Handler | None:
        """Return the handler of a present or former name, imported if need be; None if there is none."""
        handler = self.handlers.get(self.name_of(name))
        if handler is None and self.importer is not None:
            self.importer(name)
            handler = self.handlers.get(name)
        return handler

    def skipping(self) -> list[str]:
        """Return the ordered handlers whose failed deliveries do not block their key."""
        return [name for name, handler in self.handlers.items() if handler.on_failure == "skip"]

    def remove(self, name: str) -> None:
        """Remove a handler and its actor, for tests."""
        handler = self.handlers.pop(name)
        handler.actor.broker.actors.pop(name, None)
        self._on_default_broker.discard(name)
        self._patterns = [(pattern, other) for pattern, other in self._patterns if other is not handler]
        self._by_topic.clear()
        self._former = None

    def get(self, name: str) -> Handler:
        """Return the handler of a present or former name.

        Raises:
            UnknownHandler: with the closest known name.
        """
        handler = self.find(name)
        if handler is None:
            raise UnknownHandler(name, self.handlers)
        return handler

    def subscribed_to(self, topic: str) -> Sequence[Handler]:
        """Return the handlers of a topic, each once, in the order of their declaration.

        Raises:
            DuplicateHandler: if two functions have one name; delivering to only one would lose events.
        """
        if self.duplicates:
            raise DuplicateHandler(self.duplicates[0])
        found = self._by_topic.get(topic)
        if found is None:
            if len(self._by_topic) >= self.max_topics:
                self._by_topic.clear()
            matching = {
                handler.name: handler for pattern, handler in self._patterns if pattern.fullmatch(topic)
            }
            found = self._by_topic[topic] = tuple(matching.values())
        return found


registry = Registry()


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else function.__module__
    return f"{getattr(function, '__qualname__', function)!s} ({where})"

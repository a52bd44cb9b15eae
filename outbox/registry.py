"""The handlers of a project: by name, by topic and by signal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import dramatiq

from .errors import DuplicateHandler, RegistrationError, UnknownHandler
from .topics import check_pattern, compile_pattern

if TYPE_CHECKING:
    from .runs import Run

# A project has dozens of topics; this only bounds the memory of one that makes them up as it goes.
_MAX_TOPICS = 10_000

# A batch is one message, which a broker has to hold as a whole.
MAX_BATCH_SIZE = 10_000

# More would save nothing that can be measured, and be given back by a worker that ends.
MAX_PACK = 1000

Kind = Literal["event", "signal", "actor"]

OnFailure = Literal["block", "skip"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# From the events of a message to the arguments of the function; one event, unless the handler is batched.
# In the place of an event that need not be handled it may put a reason into the run.
ArgumentsOf = Callable[["Run"], Arguments]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many events a handler takes at once, and how long the oldest of them waits for the others."""

    size: int
    wait: timedelta

    def __post_init__(self) -> None:
        """Refuse what would never run, or never end.

        Raises:
            RegistrationError: if the size is not in 1…10,000, or the wait is negative.
        """
        if not 1 <= self.size <= MAX_BATCH_SIZE:
            raise RegistrationError(f"batch_size {self.size!r} must be between 1 and {MAX_BATCH_SIZE}")
        if self.wait < timedelta():
            raise RegistrationError(f"batch_wait {self.wait!r} is negative; give a positive timedelta")


# A handler is equal to itself alone, so that what is kept for one is found by its address.
@dataclass(frozen=True, kw_only=True, eq=False)
class Manner:
    """How events are delivered to a handler.

    Args:
        ordered: deliver the events of one key one after the other.
        on_failure: whether a failed delivery blocks its lane, or lets it pass.
        transactional: record its success in one transaction with its effects.
        batch: give the function a list of events; None gives it one at a time.
        pack: let up to so many deliveries travel in one message; None gives each its own.
    """

    ordered: bool = False
    on_failure: OnFailure = "block"
    transactional: bool = False
    batch: Batching | None = None
    pack: int | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            RegistrationError: with the remedy.
        """
        if self.ordered and self.batch:
            raise RegistrationError("a handler is both ordered and batched; choose one of them")
        if self.pack is not None and self.batch:
            raise RegistrationError(
                "a handler has both pack and batch_size; choose pack for a function that takes one event, "
                "batch_size for one that takes a list"
            )
        if self.pack is not None and not 1 <= self.pack <= MAX_PACK:
            raise RegistrationError(f"pack {self.pack!r} must be between 1 and {MAX_PACK}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Handler(Manner):
    """One function that events are delivered to, and the Dramatiq actor that runs it.

    Args:
        kind: what the function takes: an event, a signal's arguments, or an actor's own arguments.
        topics: the patterns it subscribes to; empty for receivers and actors, which are addressed by name.
        arguments: turns a run's events into the function's arguments; None takes the message's own.
    """

    name: str
    kind: Kind
    function: Callable[..., Any]
    actor: dramatiq.Actor[..., Any]
    topics: tuple[str, ...] = ()
    arguments: ArgumentsOf | None = None

    @property
    def queue(self) -> str:
        """Return the queue its messages go to."""
        return self.actor.queue_name


@dataclass
class Registry:
    """All handlers that this process knows.

    Attributes:
        on_broker: called with the broker of each handler that is added.
    """

    handlers: dict[str, Handler] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    on_broker: Callable[[dramatiq.Broker], None] | None = None
    _patterns: list[tuple[re.Pattern[str], Handler]] = field(default_factory=list)
    _by_topic: dict[str, tuple[Handler, ...]] = field(default_factory=dict)

    def refuse_duplicate(self, name: str, function: Callable[..., Any]) -> None:
        """Remember and refuse a second function under a name that is taken.

        Raises:
            DuplicateHandler: naming both places and the remedy.
        """
        taken = self.handlers.get(name)
        if taken is None:
            return
        fact = (
            f"handler {name!r} is declared twice: {_place(taken.function)} and {_place(function)}; "
            "give one of them another name with name=…"
        )
        self.duplicates.append(fact)
        raise DuplicateHandler(fact)

    def add(self, handler: Handler) -> None:
        """Add a handler under a name that `refuse_duplicate` has let pass.

        Raises:
            InvalidTopic: if a pattern is malformed.
        """
        for pattern in handler.topics:
            check_pattern(pattern)
        if self.on_broker is not None:
            self.on_broker(handler.actor.broker)
        self.handlers[handler.name] = handler
        self._patterns += [(compile_pattern(pattern), handler) for pattern in handler.topics]
        self._by_topic.clear()

    def skipping(self) -> list[str]:
        """Return the ordered handlers whose lanes go on past a failed delivery."""
        return [name for name, handler in self.handlers.items() if handler.on_failure == "skip"]

    def remove(self, name: str) -> None:
        """Forget a handler and its actor, as tests that declare their own do."""
        handler = self.handlers.pop(name)
        handler.actor.broker.actors.pop(name, None)
        self._patterns = [(pattern, other) for pattern, other in self._patterns if other is not handler]
        self._by_topic.clear()

    def get(self, name: str) -> Handler:
        """Return the handler of a name.

        Raises:
            UnknownHandler: with the closest known name.
        """
        try:
            return self.handlers[name]
        except KeyError:
            raise UnknownHandler(name, self.handlers) from None

    def subscribed_to(self, topic: str) -> Sequence[Handler]:
        """Return the handlers of a topic, each once, in the order of their declaration.

        Raises:
            DuplicateHandler: if two functions claimed one name; delivering to only one would lose events.
        """
        if self.duplicates:
            raise DuplicateHandler(self.duplicates[0])
        found = self._by_topic.get(topic)
        if found is None:
            if len(self._by_topic) >= _MAX_TOPICS:
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

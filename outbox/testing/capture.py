"""The events that a test has published, as the table has them, without those that were rolled back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, overload
from uuid import UUID

from django.db.models import Max
from django.db.models.functions import Coalesce, Now

from outbox.errors import suggestion
from outbox.models import Event

from .databases import databases_of_test
from .matching import UNSET, Expected, shown

# A failed assertion shows this many of the nearest events, and this many other topics.
MAX_SHOWN = 5

# SQLite's clock counts milliseconds: an event of the mark's millisecond may come before or after the mark.
_CLOCK_STEP = timedelta(seconds=1)


@dataclass
class _Mark:
    """A moment by one database's clock, and the events that existed by then."""

    database: str
    at: datetime
    earlier: set[UUID]
    last: set[UUID] | None = field(default=None)

    @classmethod
    def now(cls, database: str) -> _Mark:
        """Mark this moment; read only the events published within the step of the clock."""
        events = Event.objects.using(database)
        # By the database's clock, because tests freeze Python's, and Python makes the ids.
        newest = events.filter(pk=UUID(int=0)).aggregate(at=Coalesce(Max("created_at"), Now()))
        at = newest["at"] - _CLOCK_STEP
        return cls(database, at, set(events.filter(created_at__gte=at).values_list("pk", flat=True)))

    def later(self) -> list[Event]:
        """Return the events published after the mark, up to `close` if it was called."""
        events = Event.objects.using(self.database).filter(created_at__gte=self.at)
        return [
            event
            for event in events.order_by("created_at", "pk")
            if event.pk not in self.earlier and (self.last is None or event.pk in self.last)
        ]

    def close(self) -> None:
        """Leave out events that are published from now on."""
        self.last = {event.pk for event in self.later()}


class CapturedEvents(Sequence[Event]):
    """The events published since the list was made, in their order.

    Each use reads the table again, so an event disappears when its transaction is rolled back.
    """

    def __init__(self, using: str | None = None) -> None:
        self._marks = [_Mark.now(database) for database in databases_of_test(using)]

    def close(self) -> None:
        """Leave out events that are published from now on."""
        for mark in self._marks:
            mark.close()

    @property
    def topics(self) -> list[str]:
        """Return the topic of each event."""
        return [event.topic for event in self]

    def assert_published(self, topic: str, **expected: Any) -> list[Event]:
        """Fail unless an event of the list matches; takes the arguments of the function of this name."""
        return assert_published(topic, among=self, **expected)

    def assert_not_published(self, topic: str, **expected: Any) -> None:
        """Fail if an event of the list matches; takes the arguments of the function of this name."""
        assert_not_published(topic, among=self, **expected)

    def _events(self) -> list[Event]:
        found = [event for mark in self._marks for event in mark.later()]
        return sorted(found, key=lambda event: (event.created_at, event.pk))

    def __len__(self) -> int:
        return len(self._events())

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._events()[index]

    def __iter__(self) -> Generator[Event]:
        yield from self._events()

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # the list changes

    def __repr__(self) -> str:
        return f"[{', '.join(map(_shown, self))}]"


@contextmanager
def captured_events(using: str | None = None) -> Generator[CapturedEvents]:
    """Collect the events published inside the block, in any transaction.

    Args:
        using: only events of this database; all that the outbox serves if not given.
    """
    events = CapturedEvents(using)
    yield events
    # Not after an error: it may have broken the transaction, which then refuses queries.
    events.close()


def assert_published(
    topic: str,
    *,
    payload: Any = UNSET,
    payload__contains: Any = UNSET,
    key: str = UNSET,
    headers__contains: Any = UNSET,
    times: int | None = None,
    among: Iterable[Event] | None = None,
) -> list[Event]:
    """Fail unless an event of this topic was published; return the events that match.

    Args:
        topic: a topic, or a pattern such as `shop.*`.
        payload: the whole payload.
        payload__contains: a part of the payload: keys of objects and items of arrays that must be there.
        times: how many events match; at least one if not given.
        among: the events to search, such as `captured_events()`; all events in the tables if not given.

    Raises:
        AssertionError: with the nearest events and the other topics.
    """
    expected = Expected(
        topic=topic,
        payload=payload,
        payload__contains=payload__contains,
        key=key,
        headers__contains=headers__contains,
    )
    events = _all_events() if among is None else list(among)
    matching = [event for event in events if expected.has_topic(event) and not expected.differences(event)]
    if len(matching) != times if times is not None else not matching:
        wanted = "" if times is None else f" {times} times, but {len(matching)} times"
        raise AssertionError(f"{expected} was not published{wanted}{_nearest(expected, events)}")
    return matching


def assert_not_published(topic: str, *, among: Iterable[Event] | None = None, **expected: Any) -> None:
    """Fail if an event that matches was published; takes the arguments of `assert_published` but `times`.

    Raises:
        AssertionError: with the events that match.
    """
    wanted = Expected(topic=topic, **expected)
    events = _all_events() if among is None else among
    found = [event for event in events if wanted.has_topic(event) and not wanted.differences(event)]
    if found:
        shown_events = "".join(f"\n  {_shown(event)}" for event in found[:MAX_SHOWN])
        raise AssertionError(f"{wanted} was published {len(found)} times:{shown_events}")


def _all_events() -> list[Event]:
    return [
        event for database in databases_of_test() for event in Event.objects.using(database).order_by("pk")
    ]


def _nearest(expected: Expected, events: Sequence[Event]) -> str:
    """Describe the nearest events of the topic, then the other topics."""
    if not events:
        return "; nothing was published"
    near = [(expected.differences(event), event) for event in events if expected.has_topic(event)]
    near.sort(key=lambda pair: len(pair[0]))
    others = Counter(event.topic for event in events if not expected.has_topic(event))
    lines = ["" if near else suggestion(expected.topic, others)]
    for differences, event in near[:MAX_SHOWN]:
        lines.append(f"  {_shown(event)}")
        lines += [f"    {difference}" for difference in differences or ["matches"]]
    if len(near) > MAX_SHOWN:
        lines.append(f"  … and {len(near) - MAX_SHOWN} more")
    if others:
        listed = ", ".join(f"{topic} ({count})" for topic, count in others.most_common(MAX_SHOWN))
        lines.append(f"published {'too' if near else 'instead'}: {listed}")
    return "\n".join(lines)


def _shown(event: Event) -> str:
    key = f" key={event.key!r}" if event.key else ""
    return f"<{event.topic}{key} {shown(event.payload)}>"

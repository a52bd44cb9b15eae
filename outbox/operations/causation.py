"""The causes and the effects of an event: a tree of events with their deliveries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from outbox.models import Delivery, Event

from .finding import events_of_correlation

# Bounds the page: a handler may publish an event of its own topic for ever.
MAX_EVENTS = 200
MAX_LEVELS = 20
MAX_DELIVERIES = 1000


@dataclass
class CausedEvent:
    """One event of a tree.

    Attributes:
        deliveries: their ids, handlers and states, in the order of publication.
        caused: the events that its handlers have published.
    """

    event: Event
    deliveries: list[tuple[int, str, str]] = field(default_factory=list)
    caused: list[CausedEvent] = field(default_factory=list)

    def __iter__(self) -> Iterator[CausedEvent]:
        """Yield the event and all events below it."""
        yield self
        for one in self.caused:
            yield from one


@dataclass(frozen=True)
class CausationTree:
    """The events of one chain of causes.

    Args:
        top: the first cause that the table still has.
        pruned_cause: the id of the event that caused it, if the table no longer has that one; else empty.
        is_cut: whether the chain has more events than the tree.
    """

    top: CausedEvent
    pruned_cause: str
    is_cut: bool


def causation_tree(database: str, event: Event) -> CausationTree:
    """Return the tree of an event, with at most 200 events on at most 20 levels.

    The events below the first one are searched among the 20,000 events that follow it.
    """
    events, is_cut = _chain(database, event)
    path = [event]
    while (cause := _cause_of(path[-1])) in events and events[cause] not in path and len(path) < MAX_LEVELS:
        path.append(events[cause])
    by_cause: dict[UUID | None, list[Event]] = defaultdict(list)
    for one in events.values():
        by_cause[_cause_of(one)].append(one)
    tree, is_cut_below = _grown(path[-1], by_cause)
    _add_deliveries(database, tree)
    pruned = str(cause) if cause is not None and cause not in events else ""
    return CausationTree(tree, pruned, is_cut or is_cut_below)


def _chain(database: str, event: Event) -> tuple[dict[UUID | None, Event], bool]:
    """Return the first events with the correlation of an event, and all its causes, by id.

    Returns:
        The events, and whether there are more.
    """
    root = _id(event.headers, "correlation_id") or event.pk
    rows = Event.objects.using(database).defer("payload")
    following = events_of_correlation(database, root, limit=MAX_EVENTS)
    chain: dict[UUID | None, Event] = {one.pk: one for one in (event, *rows.filter(pk=root), *following)}
    # The causes of an event late in a long chain are not among the first ones.
    cause = _cause_of(event)
    for _ in range(MAX_LEVELS):
        if cause is not None and cause not in chain:
            chain |= {one.pk: one for one in rows.filter(pk=cause)}
        cause = _cause_of(chain[cause]) if cause in chain else None
    return chain, len(following) == MAX_EVENTS


def _grown(top: Event, by_cause: Mapping[UUID | None, list[Event]]) -> tuple[CausedEvent, bool]:
    """Return the tree below an event, and whether it has more levels than are shown."""
    found = CausedEvent(top)
    seen, level = {top.pk}, [found]
    for _ in range(MAX_LEVELS - 1):
        for parent in level:
            caused = [one for one in by_cause[parent.event.pk] if one.pk not in seen]
            parent.caused = [CausedEvent(one) for one in sorted(caused, key=lambda event: event.pk)]
            seen |= {one.pk for one in caused}
        level = [one for parent in level for one in parent.caused]
    return found, any(one.pk not in seen for parent in level for one in by_cause[parent.event.pk])


def _add_deliveries(database: str, tree: CausedEvent) -> None:
    by_event = {one.event.pk: one for one in tree}
    rows = Delivery.objects.using(database).filter(event_id__in=list(by_event)).order_by("pk")
    for pk, event_id, handler, state in rows.values_list("pk", "event_id", "handler", "state")[
        :MAX_DELIVERIES
    ]:
        by_event[event_id].deliveries.append((pk, handler, state))


def _cause_of(event: Event) -> UUID | None:
    return _id(event.headers, "causation_id")


def _id(headers: Any, name: str) -> UUID | None:
    """Return an id in the headers of an event, which may be written by hand."""
    try:
        return UUID(headers[name])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None

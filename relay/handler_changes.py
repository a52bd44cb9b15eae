"""Changes of handlers while deliveries are under way: rows follow the declarations of this process."""

from __future__ import annotations

from collections.abc import Collection, Container

from outbox.models import Delivery, PausedHandler
from outbox.registry import Handler, registry

from .claimed_delivery import ClaimedDelivery
from .maintenance_task import TaskRun

# A relay adapts the backlog when it starts, and then only the events of processes that are older.
CHANGES_INTERVAL_S = 15.0
# The rows of one statement.
CHUNK = 1000

# The reason for which an ordered delivery returns to the table.
IMPORTED = "its ordered task was imported after the claim"

_UNFINISHED = (Delivery.State.PENDING, Delivery.State.DISPATCHED)


class HandlerChanges:
    """Adapts the rows of one database.

    Args:
        database: its alias.
        queues: the queues that the relay serves; empty for all.
        chunk: the rows of one statement at most.
    """

    def __init__(self, *, database: str, queues: tuple[str, ...] = (), chunk: int = CHUNK) -> None:
        self._database = database
        self._queues = queues
        self._chunk = chunk

    def run(self) -> TaskRun:
        """Change a part of the rows."""
        changed = self.apply()
        return TaskRun(changed, has_more=changed >= self._chunk)

    def apply(self) -> int:
        """Change at most a chunk of rows for each kind of change; return the number of the largest change."""
        deliveries = Delivery.objects.using(self._database)
        former = registry.former_names()
        if former:
            PausedHandler.objects.using(self._database).rename(former)
        unordered = [name for name, handler in registry.handlers.items() if not handler.ordered]
        # A relay of all queues also dispatches deliveries to a handler's former queue.
        served = {
            name: handler.queue
            for name, handler in registry.handlers.items()
            if handler.queue in self._queues
        }
        return max(
            deliveries.rename_handlers(former, limit=self._chunk),
            deliveries.end_ordering(unordered, limit=self._chunk),
            deliveries.move_to_queues(served, limit=self._chunk),
        )


def rename_ordered(database: str, *, chunk: int = CHUNK) -> frozenset[tuple[str, str]]:
    """Give deliveries of ordered handlers the present names, before a claim compares their keys.

    Returns:
        The handlers and keys of deliveries that keep a former name, since their handler is running.
    """
    former = {old: new for old, new in registry.former_names().items() if registry.get(new).ordered}
    if not former:
        return frozenset()
    deliveries = Delivery.objects.using(database)
    while deliveries.rename_handlers(former, limit=chunk, only_keyed=True) == chunk:
        continue
    left = deliveries.filter(handler__in=list(former), state__in=_UNFINISHED).exclude(key="")
    return frozenset((former[handler], key) for handler, key in left.values_list("handler", "key")[:chunk])


def is_early(claimed: ClaimedDelivery, handler: Handler, running: Container[tuple[str, str]]) -> bool:
    """Return whether the order of a delivery's key is unknown until its key has one handler name."""
    if not handler.ordered:
        return False
    return claimed.handler != handler.name or (handler.name, claimed.key) in running


def is_paused(claimed: ClaimedDelivery, handler: Handler | None, paused: Collection[str]) -> bool:
    """Return whether the handler of a delivery is paused, under its present name or a former one."""
    names = (claimed.handler,) if handler is None else (handler.name, *handler.former_names)
    return any(name in paused for name in names)


def may_import_ordered() -> bool:
    """Return whether a claim without ordered deliveries may import the first ordered handler, a task."""
    return registry.importer is not None and not any(one.ordered for one in registry.handlers.values())

"""Events that Sentry makes of log records: dropped for errors that the tracer captures, tagged otherwise."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from outbox.run import Run

from .active import is_active
from .tags import tags_of_delivery

if TYPE_CHECKING:
    from sentry_sdk._types import Event, Hint

# The worker's logger writes the error of each failed run.
_WORKER_LOGGER = "dramatiq.worker."
# The record of a failure comes within seconds, unless the database is away.
_MAX_REPORTED = 10_000


class Reported:
    """The deliveries whose error was captured in this process.

    Another thread of the worker writes the log record of their failure, once that is in the table.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = OrderedDict[tuple[str, int], None]()

    def add(self, database: str, deliveries: Iterable[int]) -> None:
        """Add the deliveries of a failed run; forget the oldest of too many."""
        with self._lock:
            self._keys.update(((database, delivery_id), None) for delivery_id in deliveries)
            while len(self._keys) > _MAX_REPORTED:
                self._keys.popitem(last=False)

    def process(self, event: Event, hint: Hint) -> Event | None:
        """Drop the event of the record of a reported failure; add the tags of the delivery to any other."""
        record: Any = hint.get("log_record")
        if getattr(record, "signal", "") != "delivery_failed" or not is_active():
            return event
        with self._lock:
            if self._keys.pop((record.database, record.delivery_id), self) is None:
                return None
        tags = tags_of_delivery(record.delivery_id, record.handler)
        event["tags"] = {**(event.get("tags") or {}), **tags}
        return event


def drop_log_of(run: Run) -> Any:
    """Return a processor that drops the events of log records about the error of a run."""

    def process(event: Event, hint: Hint) -> Event | None:
        record: Any = hint.get("log_record")
        error = record.exc_info[1] if record is not None and record.exc_info else None
        mine = error is not None and (error is run.error or record.name.startswith(_WORKER_LOGGER))
        return None if mine else event

    return process

"""A publish within the blocks of the tracers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.db import DEFAULT_DB_ALIAS

from outbox.models import Event
from outbox.observability.tracing import Publication, Trace


def traced_publish(write: Callable[[], list[Event]], topics: Sequence[str], using: str | None) -> list[Event]:
    """Write events within the blocks of the tracers; return the events."""
    if not topics:
        return write()
    publication = Publication(using or DEFAULT_DB_ALIAS, topics)
    with Trace("publishing", publication):
        written = write()
        publication.event_ids.extend(event.pk for event in written)
    return written

"""Topics of recent events to which no handler subscribes, as after a typo in a topic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Exists, OuterRef

from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.uuid7 import uuid7_floor

from .newest import newest

# The newest events within this time are read, at most this many.
WITHIN = timedelta(days=1)
EVENTS_LIMIT = 1000


class UnhandledTopic(NamedTuple):
    """A topic without handlers, and how many of the newest events have it."""

    topic: str
    events: int


def unhandled_topics(database: str) -> list[UnhandledTopic]:
    """Return the topics to which no handler subscribes and whose newest events have no delivery."""
    since = uuid7_floor(datetime.now(UTC) - WITHIN)
    events = newest(Event.objects.using(database).filter(pk__gte=since), EVENTS_LIMIT)
    counted = events.order_by("topic").values_list("topic").annotate(Count("pk"))
    found = {topic: count for topic, count in counted if not registry.subscribed_to(topic)}
    if found:
        delivered = Exists(Delivery.objects.using(database).filter(event=OuterRef("pk")))
        handled = events.filter(delivered, topic__in=found).order_by()
        for topic in handled.values_list("topic", flat=True).distinct():
            del found[topic]
    return [UnhandledTopic(topic, count) for topic, count in found.items()]

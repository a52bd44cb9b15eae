"""Parse the search box: an event id, a key, the beginning of a key, a topic, or a pattern of topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import F, Q
from django.db.models.lookups import Exact, Regex
from django.utils.translation import gettext as _

from outbox.errors import InvalidTopic
from outbox.events import MAX_KEY_LENGTH
from outbox.models import Event
from outbox.topics import check_pattern, check_topic, compile_pattern

from .filters import topic_of_event
from .formatting import number

# The most events of one key whose deliveries are shown.
_MAX_EVENTS = 1000


class Search(NamedTuple):
    """The condition for a search term, and a note that explains it.

    Args:
        is_lookup: whether an index finds the few rows that fulfil the condition.
    """

    condition: Any
    note: str
    is_lookup: bool


def search_events(term: str, events: Any) -> Search:
    """Parse a search for events."""
    if len(term) > MAX_KEY_LENGTH:
        return _nothing()
    if (event_id := _uuid(term)) is not None:
        return Search(Q(pk=event_id), _("The event with id %s.") % event_id, True)
    # PostgreSQL uses the partial index on the key only if the query excludes the empty key.
    with_key = Q(key=term) & ~Q(key="")
    if events.filter(with_key).exists():
        return Search(with_key, _("Events with key “%s”.") % term, True)
    return _in_topic_or_key(term, F("topic"), lambda prefix: Q(key__startswith=prefix))


def search_deliveries(term: str, deliveries: Any) -> Search:
    """Parse a search for deliveries."""
    if len(term) > MAX_KEY_LENGTH:
        return _nothing()
    if (event_id := _uuid(term)) is not None:
        return Search(Q(event_id=event_id), _("Deliveries of event %s.") % event_id, True)
    events = Event.objects.using(deliveries.db).filter(Q(key=term) & ~Q(key=""))
    found = list(events.order_by("-pk").values_list("pk", flat=True)[:_MAX_EVENTS])
    if found:
        note = _("Deliveries of the newest %(count)s events with key “%(key)s”.")
        return Search(Q(event_id__in=found), note % {"count": number(len(found)), "key": term}, True)
    return _in_topic_or_key(term, topic_of_event(), lambda prefix: Q(key__startswith=prefix))


def _in_topic_or_key(term: str, topic: Any, key_starts_with: Callable[[str], Q]) -> Search:
    try:
        check_topic(term)
    except InvalidTopic:
        pass
    else:
        note = _("Topic “%(term)s”, or a key that begins with it.") % {"term": term}
        return Search(Q(Exact(topic, term)) | key_starts_with(term), note, False)
    try:
        check_pattern(term)
    except InvalidTopic:
        prefix = term.rstrip("*")
        return Search(key_starts_with(prefix), _("Keys that begin with “%s”.") % prefix, False)
    pattern = f"^{compile_pattern(term).pattern}$"
    return Search(Regex(topic, pattern), _("Topics that match “%s”.") % term, False)


def _nothing() -> Search:
    # SQLite refuses to search for such a text.
    note = _("No id, key or topic is longer than %d characters.") % MAX_KEY_LENGTH
    return Search(Q(pk__in=[]), note, True)


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None

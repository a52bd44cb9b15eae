"""Search for deliveries and events by text; each search reads a bounded number of rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import Q, TextField
from django.db.models.functions import Cast

from outbox.models import Delivery, Event
from outbox.uuid7 import uuid7_floor

from .newest import newest

# The newest rows that a search reads; for a correlation id, the first ones after its event.
ROWS_LIMIT = 20_000


def events_of_correlation(database: str, correlation_id: UUID, *, limit: int) -> list[Event]:
    """Return events with a correlation id, the oldest first.

    The id is the id of the first event, and the ids of the others are larger.
    """
    following = Event.objects.using(database).filter(pk__gt=correlation_id).order_by("pk")
    last = following.values_list("pk", flat=True)[ROWS_LIMIT - 1 : ROWS_LIMIT].first()
    within = following if last is None else following.filter(pk__lte=last)
    return list(within.filter(headers__correlation_id=str(correlation_id)).defer("payload")[:limit])


def events_with_payload(database: str, text: str, since: timedelta, *, limit: int) -> list[Event]:
    """Return events whose payload, as JSON, contains a text, the newest first; case does not matter."""
    recent = newest(Event.objects.using(database).filter(pk__gte=_first_id(since)), ROWS_LIMIT)
    # SQLite stores letters outside ASCII as escapes.
    escaped = json.dumps(text)[1:-1]
    found = recent.annotate(text=Cast("payload", TextField()))
    contains = Q(text__icontains=text) | Q(text__icontains=escaped)
    return list(found.filter(contains).defer("headers").order_by("-pk")[:limit])


def deliveries_with_error(database: str, text: str, since: timedelta, *, limit: int) -> list[Delivery]:
    """Return deliveries whose error contains a text, the newest first; case does not matter."""
    recent = newest(Delivery.objects.using(database), ROWS_LIMIT).filter(event_id__gte=_first_id(since))
    found = recent.filter(error__icontains=text).defer("message_options").order_by("-pk")
    return list(found[:limit])


def _first_id(since: timedelta) -> UUID:
    return uuid7_floor(datetime.now(UTC) - since)

"""The search of the overview: a number, an id, a key, or the text of a payload or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID

from django.http import HttpRequest
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from outbox.models import Delivery, Event
from outbox.operations import finding

from . import formatting
from .actions import as_ids
from .charts import Period
from .overview_context import PERIODS

if TYPE_CHECKING:
    from .base import OutboxAdmin

_HITS_LIMIT = 50
_LONGEST_TERM = 255

# A delivery's number, as lists (`#13042`), logs (`delivery 13042`) and texts (`shop.mail #13042`) show it.
_NUMBER = re.compile(r"(?:\S+ )?#?(\d{1,19})")

SEARCH_PLACES = (
    ("ids", _("number, id, key, correlation id")),
    ("payloads", _("text of payloads")),
    ("errors", _("text of errors")),
)


@dataclass(frozen=True)
class Hit:
    """One match."""

    url: str
    kind: Any
    text: Any
    detail: Any = ""


@dataclass(frozen=True)
class SearchResult:
    """The matches of a search, with a note about its bounds; an exact match needs no list."""

    term: str
    place: str
    period: Period
    hits: list[Hit]
    note: str
    is_exact: bool


def find_hits(model_admin: OutboxAdmin, request: HttpRequest, database: str) -> SearchResult:
    """Search as the form of a request asks for; only tables that the user may view are searched."""
    term = request.POST.get("q", "").strip()[:_LONGEST_TERM]
    place = request.POST.get("place", "ids")
    period = next((each for each in PERIODS if each.name == request.POST.get("period")), PERIODS[1])
    finder = _Finder(model_admin, request, database)
    note = _now("Numbers of deliveries, ids and correlation ids of events, and keys were searched.")
    if place in ("payloads", "errors"):
        hits = finder.payloads(term, period) if place == "payloads" else finder.errors(term, period)
        bounds = {"period": period.label, "rows": formatting.number(finding.ROWS_LIMIT), "hits": _HITS_LIMIT}
        text = _now(
            "The newest %(rows)s rows of the last %(period)s were searched; %(hits)s are shown at most."
        )
        note = text % bounds
    else:
        hits = finder.ids(term)
    found = list(hits) if term else []
    return SearchResult(term, place, period, found, note, is_exact=place not in ("payloads", "errors"))


@dataclass(frozen=True)
class _Finder:
    model_admin: OutboxAdmin
    request: HttpRequest
    database: str

    def ids(self, term: str) -> Iterator[Hit]:
        number = _NUMBER.fullmatch(term)
        if number and self._may_view("delivery"):
            for delivery in Delivery.objects.using(self.database).filter(pk__in=as_ids([number[1]])):
                yield self._delivery(delivery, "")
        if not self._may_view("event"):
            return
        events = Event.objects.using(self.database)
        event_id = _uuid(term)
        if event_id is not None:
            found = list(events.filter(pk=event_id).defer("payload"))
            yield from (self._event(event, _("event")) for event in found)
            same = finding.events_of_correlation(self.database, event_id, limit=_HITS_LIMIT)
            yield from (self._event(event, _("event of the correlation")) for event in same)
        # PostgreSQL uses the partial index on the key only if the query excludes the empty key.
        with_key = list(events.filter(key=term).exclude(key="").defer("payload").order_by("-pk")[:2])
        if len(with_key) == 1:
            yield self._event(with_key[0], _("event"))
        elif with_key:
            url = f"{self.model_admin.url('event_changelist')}?{urlencode({'q': term})}"
            yield Hit(url, _("events with the key"), term)

    def payloads(self, term: str, period: Period) -> Iterator[Hit]:
        if term and self._may_view("event"):
            for event in finding.events_with_payload(self.database, term, period.length, limit=_HITS_LIMIT):
                yield self._event(event, _("event"))

    def errors(self, term: str, period: Period) -> Iterator[Hit]:
        if term and self._may_view("delivery"):
            limit = _HITS_LIMIT
            for each in finding.deliveries_with_error(self.database, term, period.length, limit=limit):
                yield self._delivery(each, formatting.last_line(each.error))

    def _may_view(self, model: str) -> bool:
        return self.model_admin.has_app_permission(self.request, f"view_{model}")

    def _delivery(self, delivery: Delivery, detail: str) -> Hit:
        url = self.model_admin.url("delivery_change", delivery.pk)
        return Hit(url, _("delivery"), f"{delivery.handler} #{delivery.pk}", detail)

    def _event(self, event: Event, kind: Any) -> Hit:
        url = self.model_admin.url("event_change", event.pk)
        return Hit(url, kind, f"{event.topic} {event.pk}", formatting.timestamp(event.created_at))


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None

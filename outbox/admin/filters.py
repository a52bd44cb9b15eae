"""Filters that know whether an index serves them, and never look for choices in the large tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import OuterRef, Q, Subquery
from django.db.models.lookups import Exact
from django.utils.translation import gettext_lazy as _

from ..lanes import blocks_its_lane
from ..models import Delivery, Event, HandlerStats
from ..registry import registry
from ..uuid7 import uuid7_floor
from .display import dotted

# The topics of the newest events are offered, beside those that handlers subscribe to.
_RECENT = 1000
_STATS_SEEN = timedelta(days=1)

PERIODS = {
    "hour": (timedelta(hours=1), _("Last hour")),
    "day": (timedelta(days=1), _("Last day")),
    "week": (timedelta(days=7), _("Last 7 days")),
    "month": (timedelta(days=30), _("Last 30 days")),
}

# Pending deliveries that wait for something other than time have an index of their own.
HELD = "held"

# Failed deliveries that others wait for.
BLOCKING = "blocking"

# These have a partial index each, which is read in an order of its own; the next ones need a handler too.
_INDEXED = (Delivery.Status.PENDING, Delivery.Status.DISPATCHED, Delivery.Status.FAILED, BLOCKING)
_INDEXED_BY_HANDLER = (HELD, Delivery.Status.FAILED, BLOCKING)


class OutboxFilter(admin.SimpleListFilter):
    """A filter whose condition is applied by the walk along an index."""

    def condition(self) -> Any:
        """Return what rows must fulfil; only asked if a value is chosen."""
        raise NotImplementedError

    def rest(self) -> Any:
        """Return what of the condition no index ever serves; None if that is nothing."""
        return None

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether an index serves the condition beside the other chosen values."""
        return False

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Apply the condition, for actions on selected rows."""
        if not self.value():
            return queryset
        rest = self.rest()
        return queryset.filter(self.condition(), *([] if rest is None else [rest]))

    def _with_chosen(self, names: set[str]) -> list[tuple[Any, Any]]:
        chosen = self.value()
        return [(name, dotted(name)) for name in sorted(names | ({chosen} if chosen else set()))]


class StateFilter(OutboxFilter):
    """Deliveries by state."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the states."""
        pending, dispatched, succeeded, failed, discarded = Delivery.Status.choices
        held, blocking = (HELD, _("pending, held")), (BLOCKING, _("failed, blocking a lane"))
        return [pending, held, dispatched, succeeded, failed, blocking, discarded]

    def condition(self) -> Any:
        """Compare the state as the partial indexes do."""
        if self.value() == HELD:
            return Q(status=Delivery.Status.PENDING) & ~Q(held="")
        if self.value() == Delivery.Status.PENDING:
            return Q(status=Delivery.Status.PENDING, held="")
        if self.value() == BLOCKING:
            return Q(status=Delivery.Status.FAILED)
        return Q(status=self.value())

    def rest(self) -> Any:
        """Look for what waits behind, row by row."""
        return blocks_its_lane() if self.value() == BLOCKING else None

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether the state has a partial index."""
        by_handler = self.value() in _INDEXED_BY_HANDLER and HandlerFilter.parameter_name in chosen
        return self.value() in _INDEXED or by_handler


class HandlerFilter(OutboxFilter):
    """Deliveries by handler."""

    title = _("handler")
    parameter_name = "handler"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the handlers that this process knows, and those that ran of late."""
        stats = HandlerStats.objects.within(_STATS_SEEN).order_by().values_list("handler", flat=True)
        return self._with_chosen({*registry.handlers, *stats.distinct()})

    def condition(self) -> Any:
        """Compare the name."""
        return Q(handler=self.value())

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether the index of the chosen state begins with the handler."""
        return chosen.get(StateFilter.parameter_name) in _INDEXED_BY_HANDLER


class TopicFilter(OutboxFilter):
    """Events by topic, and deliveries by the topic of their event."""

    title = _("topic")
    parameter_name = "topic"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the topics that handlers name, and those of the newest events."""
        named = {
            topic for handler in registry.handlers.values() for topic in handler.topics if "*" not in topic
        }
        recent = Event.objects.order_by("-pk").values_list("topic", flat=True)[:_RECENT]
        return self._with_chosen(named | set(recent))

    def condition(self) -> Any:
        """Compare the topic."""
        return Q(topic=self.value())


class EventTopicFilter(TopicFilter):
    """Deliveries by the topic of their event."""

    def condition(self) -> Any:
        """Look the topic up by primary key, row by row: a join might read all events."""
        return Exact(topic_of_event(), self.value())


def topic_of_event() -> Subquery:
    """Return the topic of a delivery's event as an expression."""
    return Subquery(Event.objects.filter(pk=OuterRef("event_id")).values("topic")[:1])


class PeriodFilter(OutboxFilter):
    """Events by the time in their id."""

    title = _("published")
    parameter_name = "published"
    field = "pk"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the periods."""
        return [(name, label) for name, (_length, label) in PERIODS.items()]

    def condition(self) -> Any:
        """Compare with the smallest id of that moment."""
        period = PERIODS.get(self.value() or "")
        if period is None:
            raise IncorrectLookupParameters(f"{self.value()!r} is not one of {list(PERIODS)!r}")
        return Q(**{f"{self.field}__gte": uuid7_floor(datetime.now(UTC) - period[0])})

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether the id is the primary key."""
        return self.field == "pk"


class EventPeriodFilter(PeriodFilter):
    """Deliveries by the time in the id of their event."""

    field = "event_id"

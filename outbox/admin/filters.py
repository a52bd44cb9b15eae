"""The filters of the lists: each reports whether an index serves it, and its choices cost a bounded query."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import OuterRef, Q, Subquery
from django.db.models.lookups import Exact
from django.utils.translation import gettext_lazy as _

from outbox.models import Delivery, Event, HandlerStats
from outbox.operations.blocked_keys import blocks_its_key
from outbox.registry import registry
from outbox.uuid7 import uuid7_floor

from .formatting import dotted

# The topics of the newest events are offered, beside those that handlers subscribe to.
_RECENT_EVENTS = 1000
_RECENT_STATS = timedelta(days=1)

PERIODS = {
    "hour": (timedelta(hours=1), _("Last hour")),
    "day": (timedelta(days=1), _("Last day")),
    "week": (timedelta(days=7), _("Last 7 days")),
    "month": (timedelta(days=30), _("Last 30 days")),
}

# Pending deliveries that wait for a condition besides their due time.
WAITING = "waiting"

# Failed deliveries that block their ordering key.
BLOCKING = "blocking"

# Each of these values has a partial index.
_INDEXED = (Delivery.State.PENDING, Delivery.State.DISPATCHED, Delivery.State.FAILED, BLOCKING)
# The indexes of these values begin with the handler.
_INDEXED_BY_HANDLER = (WAITING, Delivery.State.FAILED, BLOCKING)


class OutboxFilter(admin.SimpleListFilter):
    """A filter whose condition the index scan of a page applies."""

    def condition(self) -> Any:
        """Return the condition on the rows; called only if a value is chosen."""
        raise NotImplementedError

    def unindexed_condition(self) -> Any:
        """Return a further condition that no index serves, or None."""
        return None

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether an index serves the condition together with the other chosen values."""
        return False

    def queryset(self, request: Any, queryset: Any) -> Any:
        """Apply the conditions, for actions on selected rows."""
        if not self.value():
            return queryset
        further = self.unindexed_condition()
        return queryset.filter(self.condition(), *([] if further is None else [further]))

    def _with_chosen(self, names: set[str]) -> list[tuple[Any, Any]]:
        chosen = self.value()
        return [(name, dotted(name)) for name in sorted(names | ({chosen} if chosen else set()))]


class StateFilter(OutboxFilter):
    """Deliveries by state."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the states."""
        pending, dispatched, succeeded, failed, discarded = Delivery.State.choices
        waiting = (WAITING, _("pending, waiting"))
        blocking = (BLOCKING, _("failed, blocking its key"))
        return [pending, waiting, dispatched, succeeded, failed, blocking, discarded]

    def condition(self) -> Any:
        """Compare the state as the partial indexes do."""
        if self.value() == WAITING:
            return Q(state=Delivery.State.PENDING) & ~Q(waits_for="")
        if self.value() == Delivery.State.PENDING:
            return Q(state=Delivery.State.PENDING, waits_for="")
        if self.value() == BLOCKING:
            return Q(state=Delivery.State.FAILED)
        return Q(state=self.value())

    def unindexed_condition(self) -> Any:
        """Keep the failed deliveries that block their key."""
        return blocks_its_key() if self.value() == BLOCKING else None

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether the state has a partial index."""
        by_handler = self.value() in _INDEXED_BY_HANDLER and HandlerFilter.parameter_name in chosen
        return self.value() in _INDEXED or by_handler


class HandlerFilter(OutboxFilter):
    """Deliveries by handler."""

    title = _("handler")
    parameter_name = "handler"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the handlers that are registered in this process, and those with recent statistics."""
        stats = HandlerStats.objects.within(_RECENT_STATS).order_by().values_list("handler", flat=True)
        return self._with_chosen({*registry.handlers, *stats.distinct()})

    def condition(self) -> Any:
        """Compare the name."""
        return Q(handler=self.value())

    def is_indexed(self, chosen: dict[str, str]) -> bool:
        """Return whether the index of the chosen state begins with the handler."""
        return chosen.get(StateFilter.parameter_name) in _INDEXED_BY_HANDLER


class TopicFilter(OutboxFilter):
    """Events by topic."""

    title = _("topic")
    parameter_name = "topic"

    def lookups(self, request: Any, model_admin: Any) -> Any:
        """Return the topics that handlers subscribe to by name, and the topics of the newest events."""
        named = {
            topic for handler in registry.handlers.values() for topic in handler.topics if "*" not in topic
        }
        recent = Event.objects.order_by("-pk").values_list("topic", flat=True)[:_RECENT_EVENTS]
        return self._with_chosen(named | set(recent))

    def condition(self) -> Any:
        """Compare the topic."""
        return Q(topic=self.value())


class EventTopicFilter(TopicFilter):
    """Deliveries by the topic of their event."""

    def condition(self) -> Any:
        """Read the topic of each row by primary key; a join might read all events."""
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

"""The tables, and the verbs that change their state."""

from .delivery import Delivery
from .event import Event, EventQuerySet, record_event, record_events
from .heartbeat import RelayHeartbeat
from .pause import PausedHandler
from .recording import NO_HEADERS, NewDelivery, NewEvent
from .stats import HandlerStats, HandlerStatsQuerySet, HistogramField, Tally
from .verbs import CRASHED, DeliveryQuerySet, storable

__all__ = [
    "CRASHED",
    "NO_HEADERS",
    "Delivery",
    "DeliveryQuerySet",
    "Event",
    "EventQuerySet",
    "HandlerStats",
    "HandlerStatsQuerySet",
    "HistogramField",
    "NewDelivery",
    "NewEvent",
    "PausedHandler",
    "RelayHeartbeat",
    "Tally",
    "record_event",
    "record_events",
    "storable",
]

"""The tables, and the verbs that change their state."""

from .delivery import Delivery, DeliveryQuerySet, storable
from .event import Event, EventQuerySet
from .heartbeat import RelayHeartbeat
from .pause import PausedHandler
from .recording import NewDelivery, NewEvent
from .stats import HandlerStats, HandlerStatsQuerySet, HistogramField, Tally

__all__ = [
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
    "storable",
]

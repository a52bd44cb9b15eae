"""The tables, and the verbs that change their state."""

from outbox.models.new_rows import NO_HEADERS, NewDelivery, NewEvent
from outbox.models.writing.write import write_event, write_events

from .backlog_sample import BacklogSample
from .broker_marker import BrokerMarker
from .delivery import Delivery
from .delivery_verbs import CRASHED, DeliveryQuerySet, storable
from .event import Event
from .handler_stats import HandlerStats, HandlerStatsQuerySet, HistogramField, Tally
from .heartbeat import ProcessHeartbeat
from .operator_job import OperatorJob
from .pause import PausedHandler
from .task_attempt import TaskAttempt

__all__ = [
    "CRASHED",
    "NO_HEADERS",
    "BacklogSample",
    "BrokerMarker",
    "Delivery",
    "DeliveryQuerySet",
    "Event",
    "HandlerStats",
    "HandlerStatsQuerySet",
    "HistogramField",
    "NewDelivery",
    "NewEvent",
    "OperatorJob",
    "PausedHandler",
    "ProcessHeartbeat",
    "Tally",
    "TaskAttempt",
    "storable",
    "write_event",
    "write_events",
]

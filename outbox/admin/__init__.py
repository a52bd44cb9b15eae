"""The admin pages of the outbox: the overview, and one module for each table.

No row can be added, edited or deleted. Operators retry and discard deliveries, cancel events, and pause and
resume handlers.
"""

from .deliveries import DeliveryAdmin
from .events import EventAdmin
from .handlers import HandlerStatsAdmin
from .operator_jobs import OperatorJobAdmin
from .overview import BacklogSampleAdmin
from .paused_handlers import PausedHandlerAdmin
from .processes import ProcessHeartbeatAdmin

__all__ = [
    "BacklogSampleAdmin",
    "DeliveryAdmin",
    "EventAdmin",
    "HandlerStatsAdmin",
    "OperatorJobAdmin",
    "PausedHandlerAdmin",
    "ProcessHeartbeatAdmin",
]

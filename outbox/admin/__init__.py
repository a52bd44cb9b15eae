"""The admin: what was published, what became of it, how handlers fare, and which relays live.

Nothing here can be added, edited or deleted. Deliveries can be retried and discarded, events cancelled, and
handlers paused and resumed.
"""

from .deliveries import DeliveryAdmin
from .events import EventAdmin
from .pausing import PausedHandlerAdmin
from .relays import RelayHeartbeatAdmin
from .stats import HandlerStatsAdmin

__all__ = ["DeliveryAdmin", "EventAdmin", "HandlerStatsAdmin", "PausedHandlerAdmin", "RelayHeartbeatAdmin"]

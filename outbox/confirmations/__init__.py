"""Confirmations: outcomes are buffered in the workers, and written to the table in bulk."""

from .buffer import Buffer
from .captured_outcomes import capture_outcomes
from .confirmations import Confirmations, confirmations
from .policy import FlushPolicy
from .statements import confirm

__all__ = ["Buffer", "Confirmations", "FlushPolicy", "capture_outcomes", "confirm", "confirmations"]

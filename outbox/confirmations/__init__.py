"""Outcomes on their way back from the workers to the table: buffered, and flushed in bulk."""

from .buffer import Batch
from .flushing import Confirmations, confirmations
from .writing import confirm

__all__ = ["Batch", "Confirmations", "confirm", "confirmations"]

"""The claim: lock due deliveries, mark them dispatched, and return what to send.

The row locks are the lease: they go with the transaction, whatever becomes of the process.
"""

from .claiming import Claim
from .taken import Taken

__all__ = ["Claim", "Taken"]

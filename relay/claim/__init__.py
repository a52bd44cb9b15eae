"""The claim: lock due deliveries, mark them dispatched, and return what to send.

The row locks are the lease: they end with the transaction, also when the process dies.
"""

from .claiming import Claim
from .result import ClaimResult
from .scan_cursor import ScanCursors

__all__ = ["Claim", "ClaimResult", "ScanCursors"]

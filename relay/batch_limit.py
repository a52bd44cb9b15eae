"""The size of the next claims: smaller after a batch that the broker did not take in time."""

from __future__ import annotations

# A batch grows only if a batch of twice its size would probably take less than a quarter of the deadline.
GROW_WITHIN = 1 / 8

# Claims read the payloads of all rows that they lock. So they lock about twice as many as fit, by the average
# size in the last batch.
READ_AHEAD = 2


class BatchLimit:
    """The limits of one relay's next claim.

    Args:
        rows: the deliveries of a claim at most.
        size: the characters of payloads and headers of a claim at most.
    """

    def __init__(self, *, rows: int, size: int) -> None:
        self.rows = self._max_rows = self._rows_by_time = rows
        self.size = self._max_size = size

    def note_lost(self, rows: int, size: int) -> None:
        """Halve the next claim, after a batch that the broker did not take as a whole."""
        self.rows = self._rows_by_time = max(1, rows // 2)
        self.size = max(1, min(size // 2, self._max_size))

    def note_sent(self, rows: int, size: int, *, took_s: float, timeout_s: float) -> None:
        """Let the next claim grow after a quick batch, and fit its rows to the size of the last ones."""
        if took_s <= timeout_s * GROW_WITHIN:
            self._rows_by_time = min(self._rows_by_time * 2, self._max_rows)
            self.size = min(self.size * 2, self._max_size)
        fitting = READ_AHEAD * self.size * rows // max(size, 1)
        self.rows = max(1, min(self._rows_by_time, fitting))

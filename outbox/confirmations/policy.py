"""The sizes and times of the buffer of outcomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class FlushPolicy:
    """When buffered outcomes are flushed, and how long the flush is retried.

    Args:
        flush_size: outcomes in the buffer that start a flush, and outcomes of one statement.
        flush_interval_s: the longest time that an outcome waits for a flush.
        count_interval_s: the same for the counts of dispatched deliveries and of monitored functions. No
            process waits for these counts. Every web process has some, and a relay has some for each event.
        min_retry_s: the first delay after a failed flush. It is short, as a relay soon commits a locked row.
        max_retry_s: the longest delay after a failed flush, as in an outage.
        close_timeout_s: how long `close` retries while the database is away.
        exit_timeout_s: how long a process that exits waits for its database to write its last counts.
        max_buffered: outcomes of one database at which worker threads wait, as while the database is away.
        max_text_bytes: the size of their errors and message options at which worker threads wait.
        room_interval_s: the longest time between two checks of a thread that waits for room.

    Raises:
        ValueError: if a value is negative, or a size is zero.
    """

    flush_size: int = 500
    flush_interval_s: float = 0.1
    count_interval_s: float = 5.0
    min_retry_s: float = 0.02
    max_retry_s: float = 0.2
    close_timeout_s: float = 30.0
    exit_timeout_s: float = 2.0
    max_buffered: int = 100_000
    max_text_bytes: int = 64 * 1024 * 1024
    room_interval_s: float = 0.2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            smallest = 1 if name in ("flush_size", "max_buffered", "max_text_bytes") else 0
            if value < smallest:
                raise ValueError(f"{name} is {value!r}; give at least {smallest}")
        if self.min_retry_s > self.max_retry_s:
            raise ValueError(
                f"min_retry_s is {self.min_retry_s!r}; give at most max_retry_s, {self.max_retry_s!r}"
            )

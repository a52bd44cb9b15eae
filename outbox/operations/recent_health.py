"""Health reports that are kept for some seconds, for endpoints that anybody may call at any rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from django.db import Error

from outbox.conf import get_settings

from .health import get_health
from .health_report import Health, Verdict

MAX_AGE_S = 5.0
# A database that does not answer must not keep every thread that asks for the health.
MAX_WAIT_S = 10.0


@dataclass
class _Kept:
    lock: threading.Lock = field(default_factory=threading.Lock)
    report: Health | None = None
    measured_at_s: float = 0.0


class RecentHealth:
    """Measures the health of a database at most once within a time, in this process.

    Several threads that ask at the same time wait for one measurement.

    Args:
        max_age_s: how long a report is used again.
        max_wait_s: how long a thread waits for the measurement of another one.
        measure: returns a new report.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_age_s: float = MAX_AGE_S,
        max_wait_s: float = MAX_WAIT_S,
        measure: Callable[[str], Health] = get_health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_s = max_age_s
        self._max_wait_s = max_wait_s
        self._measure = measure
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def get(self, database: str) -> Health:
        """Return the report of a database.

        Raises:
            Error: if the database cannot be asked; the next call asks again.
            TimeoutError: if another thread has waited for the database for too long.
        """
        kept = self._kept.setdefault(database, _Kept())
        if not kept.lock.acquire(timeout=self._max_wait_s):
            raise TimeoutError("an earlier measurement has not ended")
        try:
            if kept.report is None or self._clock() - kept.measured_at_s >= self._max_age_s:
                kept.report = self._measure(database)
                kept.measured_at_s = self._clock()
            return kept.report
        finally:
            kept.lock.release()

    def get_all(self) -> Mapping[str, Health | Exception]:
        """Return the report of each database of `OUTBOX["DATABASES"]`, or the error of its measurement."""
        found: dict[str, Health | Exception] = {}
        for alias in get_settings().databases:
            try:
                found[alias] = self.get(alias)
            except (Error, TimeoutError) as error:
                found[alias] = error
        return found


def worst_verdict(reports: Mapping[str, Health | Exception]) -> Verdict:
    """Return the worst verdict; a database that cannot be asked is trouble."""
    ranks = list(Verdict)
    verdicts = (one.verdict if isinstance(one, Health) else Verdict.TROUBLE for one in reports.values())
    return max(verdicts, key=ranks.index, default=Verdict.OK)

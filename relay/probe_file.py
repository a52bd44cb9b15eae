"""A file whose age shows a monitor, such as Kubernetes, that the relays of a process work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

logger = logging.getLogger(__name__)

# A relay reports at least this often, unless it hangs: the longest backoff of an outage, the longest dispatch
# with the default settings, and a margin.
SILENT_S = 60.0
TOUCH_INTERVAL_S = 1.0


class ProbeFile:
    """Touches a file while every relay of the process reports.

    Args:
        databases: the databases, each with a relay that reports.
        clock: returns monotonic seconds.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(
        self, path: Path, databases: Iterable[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._reported = dict.fromkeys(databases, clock())
        self._touched_at = clock()
        self._is_broken = False
        path.touch()

    def reporter(self, database: str) -> Callable[[], None]:
        """Return a function that the relay of a database calls while it works."""
        return partial(self._report, database)

    def remove(self) -> None:
        """Remove the file, as no relay works any more."""
        self._path.unlink(missing_ok=True)

    def _report(self, database: str) -> None:
        now = self._clock()
        self._reported[database] = now
        if now - self._touched_at >= TOUCH_INTERVAL_S and now - min(self._reported.values()) < SILENT_S:
            self._touched_at = now
            self._touch()

    def _touch(self) -> None:
        try:
            self._path.touch()
        except OSError:
            if not self._is_broken:
                logger.warning("could not touch the probe file %s", self._path, exc_info=True)
            self._is_broken = True
        else:
            self._is_broken = False

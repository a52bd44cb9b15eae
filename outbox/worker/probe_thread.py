"""A file whose age shows a monitor, such as Kubernetes, that a worker process works."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from dramatiq import Worker

logger = logging.getLogger(__name__)

TOUCH_INTERVAL_S = 5.0


class ProbeThread(threading.Thread):
    """Touches the file while all threads of a worker are alive; removes it at the end.

    Args:
        path: the file; `{pid}` in it becomes the id of the process.
        worker: the Dramatiq worker.
        interval_s: the time between two touches.
    """

    def __init__(self, path: str, *, worker: Worker, interval_s: float = TOUCH_INTERVAL_S) -> None:
        super().__init__(name="outbox-probe", daemon=True)
        self._path = Path(path.replace("{pid}", str(os.getpid())))
        self._worker = worker
        self._interval_s = interval_s
        self._ended = threading.Event()

    def run(self) -> None:
        """Touch the file until `end`."""
        try:
            while not self._ended.is_set():
                if is_working(self._worker):
                    self._path.touch()
                self._ended.wait(self._interval_s)
            self._path.unlink(missing_ok=True)
        except OSError:
            # Its monitor will notice.
            logger.exception("cannot write the probe file %s", self._path)

    def note_stopping(self) -> None:
        """Go on: a worker that stops is still alive."""

    def end(self) -> None:
        """Let the thread remove the file and end."""
        self._ended.set()


def is_working(worker: Worker) -> bool:
    """Return whether no thread of a worker has died."""
    return all(thread.is_alive() for thread in (*worker.workers, *worker.consumers.values()))

"""The stop of a relay process that is still starting."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from outbox.posix import STOP_SIGNALS

COMMAND = "run_relay"
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


def stop_while_starting() -> None:
    """Let a signal end a process that starts as a relay with status 0, as it does once the relay runs.

    Until then the process has claimed nothing. Handlers that the project has set stay.
    """
    if sys.argv[1:2] != [COMMAND] or threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in DEFAULTS:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)

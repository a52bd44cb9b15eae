"""Functions of POSIX that Windows lacks, and their replacements there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

# Windows sends no hangup.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
STOP_SIGNALS = tuple(filter(None, (signal.SIGTERM, signal.SIGINT, HANGUP)))


def call_in_forked_children(call: Callable[[], object]) -> None:
    """Call a function in every process that is forked from this one; Windows forks no processes."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def user_id() -> int:
    """Return the id of the user that runs this process.

    Raises:
        OSError: on Windows, where users have no number and files no owner that `stat` reports.
    """
    if not hasattr(os, "getuid"):
        raise OSError("this system has no user ids")
    return os.getuid()


def may_be_running(pid: int) -> bool:
    """Return whether this host may have a process of this number; on Windows always, where asking ends it."""
    if HANGUP is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def all_signals_blocked() -> Generator[None]:
    """Let no signal interrupt the block; on Windows signals interrupt only the main thread."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

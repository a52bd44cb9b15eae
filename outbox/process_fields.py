"""The fields that name this process, the same in its heartbeat, its telemetry and its log."""

from __future__ import annotations

import os
import socket
import sys
from typing import TypedDict

# The widths of the columns.
MAX_HOST_CHARS = 255
MAX_VERSION_CHARS = 40


class ProcessFields(TypedDict):
    """The host, the process id, and the version of this package."""

    host: str
    pid: int
    version: str


def process_fields() -> ProcessFields:
    """Return the fields of this process."""
    # The package is loaded before each of its modules, and an import of it would be a cycle.
    version: str = sys.modules[__package__].__version__
    return {
        "host": socket.gethostname()[:MAX_HOST_CHARS],
        "pid": os.getpid(),
        "version": version[:MAX_VERSION_CHARS],
    }

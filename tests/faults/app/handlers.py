"""A handler that may run twice, and one whose effects must not happen twice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.conf import settings

from outbox import ReceivedEvent, handler

from .models import Effect

QUEUE = f"{settings.TEST_PREFIX}default"

# The faults are not the handlers' own: they go on trying, and soon.
PATIENT: Any = {"max_retries": 10_000, "min_backoff": 50, "max_backoff": 500}

POLL_INTERVAL_S = 0.01


@handler("faults.sold", name="file", queue_name=QUEUE, **PATIENT)
def file(event: ReceivedEvent) -> None:
    record("file", event)
    wait_while_held("file")


@handler("faults.sold", name="book", queue_name=QUEUE, transactional=True, **PATIENT)
def book(event: ReceivedEvent) -> None:
    record("book", event)
    wait_while_held("book")


def record(name: str, event: ReceivedEvent) -> None:
    """Write down that a handler did its work once more."""
    Effect.objects.create(handler=name, sale=event.payload["sale"], run=event.payload["run"])


def wait_while_held(name: str) -> None:
    """Stay in the middle of the work, and say so, while the file `hold` is there."""
    folder = Path(os.environ["OUTBOX_TEST_FOLDER"])
    if (folder / "hold").exists():
        (folder / f"held-{name}").touch()
    while (folder / "hold").exists():
        time.sleep(POLL_INTERVAL_S)

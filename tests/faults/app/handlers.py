"""A plain handler, a transactional handler and an ordered handler."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from outbox import ReceivedEvent, handler
from tests.faults import effort

from . import HANDLERS
from .models import Effect

QUEUE = f"{settings.TEST_PREFIX}default"

# The faults are not in the handlers, so they are retried without a limit and soon.
MAX_BACKOFF_MS = int(effort.RETRY.total_seconds() * 1000)
PATIENT: Any = {"max_retries": 10_000, "min_backoff": 50, "max_backoff": MAX_BACKOFF_MS}

POLL_INTERVAL_S = 0.01


@handler("faults.sold", name="file", queue_name=QUEUE, **PATIENT)
def file(event: ReceivedEvent) -> None:
    record("file", event, done_at=Now())
    wait_while_stalled("file")


@handler("faults.sold", name="book", queue_name=QUEUE, transactional=True, **PATIENT)
def book(event: ReceivedEvent) -> None:
    record("book", event, done_at=Now())
    wait_while_stalled("book")


@handler("faults.sold", name="follow", queue_name=QUEUE, ordered=True, **PATIENT)
def follow(event: ReceivedEvent) -> None:
    effect = record("follow", event)
    wait_while_stalled("follow")
    Effect.objects.filter(pk=effect.pk).update(done_at=Now())


def record(name: str, event: ReceivedEvent, **times: Any) -> Effect:
    """Record that a handler has begun, or has done its work."""
    return Effect.objects.create(handler=name, sale=event.payload["sale"], run=event.payload["run"], **times)


def wait_while_stalled(name: str) -> None:
    """Stall in the middle of the work, and report it, while the file `stall` exists.

    Until a run of each handler has stalled, a second run of the same handler continues, because the worker
    has only a few threads.
    """
    folder = Path(os.environ["OUTBOX_TEST_FOLDER"])
    stall = folder / "stall"
    is_first = stall.exists() and made(folder / f"stalled-{name}")
    while stall.exists() and (is_first or all((folder / f"stalled-{each}").exists() for each in HANDLERS)):
        time.sleep(POLL_INTERVAL_S)


def made(file: Path) -> bool:
    """Create a file; return whether it did not exist."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

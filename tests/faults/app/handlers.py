"""A handler that may run twice, one whose effects must not happen twice, and one that keeps to an order."""

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

# The faults are not the handlers' own: they go on trying, and soon.
MAX_BACKOFF_MS = int(effort.RETRY.total_seconds() * 1000)
PATIENT: Any = {"max_retries": 10_000, "min_backoff": 50, "max_backoff": MAX_BACKOFF_MS}

POLL_INTERVAL_S = 0.01


@handler("faults.sold", name="file", queue_name=QUEUE, **PATIENT)
def file(event: ReceivedEvent) -> None:
    record("file", event, done_at=Now())
    wait_while_held("file")


@handler("faults.sold", name="book", queue_name=QUEUE, transactional=True, **PATIENT)
def book(event: ReceivedEvent) -> None:
    record("book", event, done_at=Now())
    wait_while_held("book")


@handler("faults.sold", name="follow", queue_name=QUEUE, ordered=True, **PATIENT)
def follow(event: ReceivedEvent) -> None:
    effect = record("follow", event)
    wait_while_held("follow")
    Effect.objects.filter(pk=effect.pk).update(done_at=Now())


def record(name: str, event: ReceivedEvent, **times: Any) -> Effect:
    """Write down that a handler did its work once more, or has begun to."""
    return Effect.objects.create(handler=name, sale=event.payload["sale"], run=event.payload["run"], **times)


def wait_while_held(name: str) -> None:
    """Stay in the middle of the work, and say so, while the file `hold` is there.

    Until one of each handler stays, a second one of the same leaves: the worker has only so many threads.
    """
    folder = Path(os.environ["OUTBOX_TEST_FOLDER"])
    hold = folder / "hold"
    is_first = hold.exists() and made(folder / f"held-{name}")
    while hold.exists() and (is_first or all((folder / f"held-{each}").exists() for each in HANDLERS)):
        time.sleep(POLL_INTERVAL_S)


def made(file: Path) -> bool:
    """Make a file; return whether it was not there."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

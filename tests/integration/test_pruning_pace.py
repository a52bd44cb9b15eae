"""Pruning keeps pace with publishers: the rate follows from rows and CPU time, not from the load."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

import outbox
from outbox.models import Delivery, Event
from outbox.operations.pruning import PRUNE_CHUNK, PruningPass
from relay.maintenance import PRUNE_SHARE
from relay.pruning_task import PRUNE_CHUNKS_AT_ONCE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres, pytest.mark.slow]

ROUNDS = 4
EVENTS = PRUNE_CHUNK * PRUNE_CHUNKS_AT_ONCE
PUBLISHED_PER_S = 5000


def cpu_time_s() -> float:
    """Return the CPU time of this process and of its session of the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    try:
        # The first number is the time on a processor, in nanoseconds.
        on_processor_ns = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        pytest.skip("the server runs on another host, or in another container")
    return time.process_time() + on_processor_ns / 1e9


def cpu_s(do: Callable[[], object]) -> float:
    began_s = cpu_time_s()
    do()
    return cpu_time_s() - began_s


def publish() -> None:
    with transaction.atomic():
        outbox.publish_many({"topic": "test.recorded", "payload": {"n": n}} for n in range(EVENTS))


def test_a_relay_prunes_faster_than_publishers_write(settings: Any) -> None:
    settings.OUTBOX = {"RETENTION": timedelta()}
    pruning = PruningPass("default")
    publishing_s = pruning_s = 0.0
    # In turn, so that a change of the machine's speed changes both.
    for _round in range(ROUNDS):
        publishing_s += cpu_s(publish)
        Delivery.objects.update(state="succeeded")
        # As a relay does: a few chunks at once, until the pass is complete.
        pruning_s += cpu_s(lambda: pruning.delete_chunks(PRUNE_CHUNKS_AT_ONCE))
        pruning.delete_chunks()
        assert not Event.objects.exists()
    assert pruning_s < publishing_s
    assert PRUNE_SHARE * ROUNDS * EVENTS / pruning_s >= PUBLISHED_PER_S

"""Many threads publish while several relays dispatch; without faults each event is delivered once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from django.db import connections, transaction

import outbox
from outbox.models import Event, ProcessHeartbeat
from tests.support.processes import wait_until

from .folder import Folder
from .stage import attempts, counted, ids, relay, states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

THREADS = 10
RELAYS = 3
EVENTS_PER_TRANSACTION = 20
# One of this many transactions is rolled back.
ROLLED_BACK = 5


class ChangedMind(Exception):
    """Rolls a transaction back."""


def publish_some(number: int) -> list[str]:
    """Publish in a transaction; return the ids of the committed events."""
    try:
        with transaction.atomic():
            events = [outbox.publish("filed.mail", number)]
            events += outbox.publish_many([{"topic": "filed.mail"}] * (EVENTS_PER_TRANSACTION - 1))
            if number % ROLLED_BACK == 0:
                raise ChangedMind
    except ChangedMind:
        return []
    finally:
        connections.close_all()
    return ids(events)


def publish_in_threads(count: int) -> list[str]:
    """Publish `count` events that are committed, and a quarter as many that are rolled back."""
    committed = count // EVENTS_PER_TRANSACTION
    transactions = committed + committed // (ROLLED_BACK - 1)
    with ThreadPoolExecutor(THREADS) as pool:
        return [one for some in pool.map(publish_some, range(1, transactions + 1)) for one in some]


def all_relays_reported(count: int) -> bool:
    """Return whether the relays have reported `count` dispatched deliveries, and each relay at least one."""
    reported = list(ProcessHeartbeat.objects.relays().values_list("dispatched", flat=True))
    return len(reported) == RELAYS and all(reported) and sum(reported) == count


@pytest.mark.parametrize(
    ("broker_url", "count"),
    [
        pytest.param("redis", 10_000, marks=pytest.mark.redis),
        pytest.param("rabbitmq", 2_000, marks=pytest.mark.rabbitmq),
    ],
    indirect=["broker_url"],
)
def test_each_committed_event_is_delivered_once(
    broker_env: dict[str, str], count: int, folder: Folder
) -> None:
    with ExitStack() as stack:
        relays = [stack.enter_context(relay(broker_env, "--batch-size", "50")) for _ in range(RELAYS)]
        stack.enter_context(worker(broker_env, threads=8))
        for process in relays:
            process.wait_for_line("relay started")
        published = publish_in_threads(count)
        assert len(published) == Event.objects.count() == count
        wait_until(lambda: states() == {"succeeded": count}, 90, "all to succeed")
        wait_until(lambda: all_relays_reported(count), what="every relay to report its share")
        for process in relays:
            process.terminate()
        assert [process.wait() for process in relays] == [0] * RELAYS
        wait_until(lambda: counted("succeeded") == count, what="the workers' statistics")
    assert Counter(folder.done) == Counter(published)
    assert attempts() == {1}
    assert {name: counted(name) for name in ("dispatched", "retried", "failed")} == {
        "dispatched": count,
        "retried": 0,
        "failed": 0,
    }

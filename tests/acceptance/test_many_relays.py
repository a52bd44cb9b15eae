"""Many threads publish while several relays dispatch: each event once, as long as nothing fails."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from django.db import connections, transaction

import outbox
from outbox.models import Event, RelayHeartbeat
from tests.acceptance.folder import Folder
from tests.acceptance.stage import attempts, counted, ids, relay, states, worker
from tests.processes import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

THREADS = 10
RELAYS = 3
EVENTS_PER_TRANSACTION = 20
# Every so many transactions, one is rolled back.
ROLLED_BACK = 5


class ChangedMind(Exception):
    """Rolls a transaction back."""


def publish_some(number: int) -> list[str]:
    """Publish in a transaction of its own; return the ids of what was committed."""
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
    """Publish until `count` events are committed, a fifth as many more being rolled back."""
    committed = count // EVENTS_PER_TRANSACTION
    transactions = committed + committed // (ROLLED_BACK - 1)
    with ThreadPoolExecutor(THREADS) as pool:
        return [one for some in pool.map(publish_some, range(1, transactions + 1)) for one in some]


def everyone_took_part(count: int) -> bool:
    """Return whether the relays have reported `count` dispatched deliveries, each of them some."""
    reported = list(RelayHeartbeat.objects.values_list("dispatched", flat=True))
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
        wait_until(lambda: everyone_took_part(count), what="every relay to report its share")
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

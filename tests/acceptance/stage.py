"""The processes that play in acceptance tests, and what an onlooker sees in the table and the broker."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import pika
import redis
from django.db.models import Sum

from outbox.models import Delivery, Event, HandlerStats
from tests.acceptance.activity import APPLICATION
from tests.processes import Process, wait_until

STATES_DEADLINE_S = 60


def relay(env: dict[str, str], *options: str) -> Process:
    """Prepare `manage.py run_relay`, known to PostgreSQL by its name."""
    return Process.manage("run_relay", *options, env=env | {"PGAPPNAME": APPLICATION})


def worker(env: dict[str, str], threads: int = 4) -> Process:
    """Prepare `manage.py rundramatiq` with one worker process."""
    return Process.manage("rundramatiq", "--processes", "1", "--threads", str(threads), env=env)


def run(env: dict[str, str], *options: str) -> None:
    """Run a relay that ends by itself, and require that it ends well."""
    with relay(env, *options) as process:
        assert process.wait() == 0


def with_options(env: dict[str, str], **options: Any) -> dict[str, str]:
    """Return `env` with an OUTBOX setting."""
    return env | {"OUTBOX_TEST_OPTIONS": json.dumps(options)}


def requeueing_soon(env: dict[str, str]) -> dict[str, str]:
    """Return `env` with a Redis broker that does not wait for a minute to give back what dead workers had."""
    if urlsplit(env["OUTBOX_TEST_BROKER_URL"]).scheme != "redis":
        return env
    options = {"heartbeat_timeout": 3000, "maintenance_chance": 1_000_000}
    return env | {"OUTBOX_TEST_BROKER_OPTIONS": json.dumps(options)}


def states() -> dict[str, int]:
    """Return how many deliveries are in which state."""
    return dict(Counter(Delivery.objects.values_list("status", flat=True)))


def wait_for_states(deadline_s: float = STATES_DEADLINE_S, **wanted: int) -> None:
    """Wait until exactly so many deliveries are in these states, and none in another."""
    try:
        wait_until(lambda: states() == wanted, deadline_s)
    except AssertionError:
        raise AssertionError(f"waited {deadline_s} s for {wanted}; there are {states()}") from None


def attempts(**states: Any) -> set[int]:
    """Return the numbers of attempts that deliveries in a state have had."""
    return set(Delivery.objects.filter(**states).values_list("attempts", flat=True))


def counted(column: str) -> int:
    """Return a counter of the statistics, over all handlers and minutes."""
    return HandlerStats.objects.aggregate(sum=Sum(column))["sum"] or 0


def ids(events: list[Event]) -> list[str]:
    """Return the ids of events as the folder has them."""
    return [str(event.pk) for event in events]


# ---------------------------------------------------------------- what the broker holds


def waiting_in_broker(url: str) -> list[int]:
    """Return the deliveries whose messages wait in the queues of this session, once for each message."""
    read = _read_redis if urlsplit(url).scheme == "redis" else _read_rabbitmq
    return sorted(json.loads(body)["options"]["outbox"]["delivery"] for body in read(url))


def _queues() -> list[str]:
    prefix = os.environ["OUTBOX_TEST_PREFIX"]
    return [name for name in dramatiq.get_broker().get_declared_queues() if name.startswith(prefix)]


def _read_redis(url: str) -> list[bytes]:
    namespace = os.environ["OUTBOX_TEST_PREFIX"].rstrip("_")
    with redis.Redis.from_url(url) as client:
        return [body for queue in _queues() for body in client.hvals(f"{namespace}:{queue}.msgs")]


def _read_rabbitmq(url: str) -> list[bytes]:
    # What is not acknowledged goes back to its queue when the connection closes.
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return [body for queue in _queues() for body in _read_queue(connection, queue)]


def _read_queue(connection: pika.BlockingConnection, queue: str) -> list[bytes]:
    bodies: list[bytes] = []
    channel = connection.channel()
    try:
        while (body := channel.basic_get(queue)[2]) is not None:
            bodies.append(body)
    except pika.exceptions.ChannelClosedByBroker:
        pass  # nobody has declared the queue yet
    return bodies

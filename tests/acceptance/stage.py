"""The processes of acceptance tests, and the contents of the table and the broker."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import pika
import redis
from django.db.models import Sum
from django.db.models.functions import Now

from outbox.models import Delivery, Event, HandlerStats
from tests.support.processes import Process, wait_until

from .activity import APPLICATION

STATES_DEADLINE_S = 60


def relay(env: dict[str, str], *options: str) -> Process:
    """Prepare `manage.py run_relay`, with its application name for PostgreSQL."""
    return Process.manage("run_relay", *options, env=env | {"PGAPPNAME": APPLICATION})


def worker(env: dict[str, str], threads: int = 4) -> Process:
    """Prepare `manage.py rundramatiq` with one worker process."""
    return Process.manage("rundramatiq", "--processes", "1", "--threads", str(threads), env=env)


def run(env: dict[str, str], *options: str) -> None:
    """Run a relay to its end, and require the exit status 0."""
    with relay(env, *options) as process:
        assert process.wait() == 0


def with_options(env: dict[str, str], **options: Any) -> dict[str, str]:
    """Return `env` with an OUTBOX setting."""
    return env | {"OUTBOX_TEST_OPTIONS": json.dumps(options)}


def requeueing_soon(env: dict[str, str]) -> dict[str, str]:
    """Return `env` with a Redis broker that requeues messages of dead workers after 3 s, not 60 s."""
    if urlsplit(env["OUTBOX_TEST_BROKER_URL"]).scheme != "redis":
        return env
    options = {"heartbeat_timeout": 3000, "maintenance_chance": 1_000_000}
    return env | {"OUTBOX_TEST_BROKER_OPTIONS": json.dumps(options)}


def states() -> dict[str, int]:
    """Return the number of deliveries in each state."""
    return dict(Counter(Delivery.objects.values_list("state", flat=True)))


def wait_for_states(deadline_s: float = STATES_DEADLINE_S, **wanted: int) -> None:
    """Wait until the deliveries have these states, with these numbers and no others."""
    try:
        wait_until(lambda: states() == wanted, deadline_s)
    except AssertionError:
        raise AssertionError(f"waited {deadline_s} s for {wanted}; the states are {states()}") from None


def make_overdue() -> None:
    """Let the time for the confirmation of all dispatched deliveries end now.

    With a short `CONFIRM_TIMEOUT` instead, it would end again while a worker of a busy machine boots.
    """
    assert Delivery.objects.unconfirmed().update(confirm_by=Now() - timedelta(seconds=1))


def attempts(**states: Any) -> set[int]:
    """Return the numbers of attempts of the deliveries in a state."""
    return set(Delivery.objects.filter(**states).values_list("attempts", flat=True))


def counted(column: str) -> int:
    """Return a counter of the statistics, over all handlers and minutes."""
    return HandlerStats.objects.aggregate(sum=Sum(column))["sum"] or 0


def ids(events: list[Event]) -> list[str]:
    """Return the ids of events as the folder has them."""
    return [str(event.pk) for event in events]


# ---------------------------------------------------------------- messages in the broker


def waiting_in_broker(url: str) -> list[int]:
    """Return the delivery of each message that waits in the queues of this session."""
    read = _read_redis if urlsplit(url).scheme == "redis" else _read_rabbitmq
    return sorted(json.loads(body)["options"]["outbox"]["delivery"] for body in read(url))


def _queues() -> list[str]:
    prefix = os.environ["OUTBOX_TEST_PREFIX"]
    return [name for name in dramatiq.get_broker().get_declared_queues() if name.startswith(prefix)]


def _read_redis(url: str) -> list[bytes]:
    with redis.Redis.from_url(url) as client:
        return [body for queue in _queues() for body in client.hvals(f"{namespace()}:{queue}.msgs")]


def age_redis_heartbeats(url: str) -> None:
    """Let the heartbeats of all workers be so old that Redis may requeue the messages of these workers."""
    heartbeats = f"{namespace()}:__heartbeats__"
    with redis.Redis.from_url(url) as client:
        client.zadd(heartbeats, dict.fromkeys(client.zrange(heartbeats, 0, -1), 1))


def namespace() -> str:
    """Return the namespace of this session's keys in Redis."""
    return os.environ["OUTBOX_TEST_PREFIX"].rstrip("_")


def _read_rabbitmq(url: str) -> list[bytes]:
    # Messages that are not acknowledged return to their queue when the connection closes.
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return [body for queue in _queues() for body in _read_queue(connection, queue)]


def _read_queue(connection: pika.BlockingConnection, queue: str) -> list[bytes]:
    bodies: list[bytes] = []
    channel = connection.channel()
    try:
        while (body := channel.basic_get(queue)[2]) is not None:
            bodies.append(body)
    except pika.exceptions.ChannelClosedByBroker:
        pass  # the queue is not declared yet
    return bodies

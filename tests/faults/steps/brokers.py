"""What befalls brokers and the ways to them."""

from __future__ import annotations

import os
import signal

from redis import Redis

from example.services import EmbeddedRedis
from tests.faults.servers import RabbitmqNode
from tests.faults.steps.run import OUTAGE, Run


def redis(run: Run) -> EmbeddedRedis:
    """Return the broker that a step is made for."""
    assert isinstance(run.stage.broker, EmbeddedRedis)
    return run.stage.broker


def rabbitmq(run: Run) -> RabbitmqNode:
    """Return the broker that a step is made for."""
    assert isinstance(run.stage.broker, RabbitmqNode)
    return run.stage.broker


def flush_redis(run: Run) -> None:
    """Delete all that Redis holds, with messages among it."""
    run.stage.hold_handlers()
    run.wait_for_sales(10)
    with Redis.from_url(run.stage.broker.url) as client:
        client.flushall()
    run.stage.let_go()


def restart_redis(run: Run) -> None:
    """Kill Redis, which keeps nothing on disk, and start it again."""
    run.stage.hold_handlers()
    run.wait_for_sales(10)
    redis(run).kill()
    run.for_a_while(OUTAGE)
    redis(run).start()
    run.stage.let_go()


def close_connections(run: Run) -> None:
    """Let RabbitMQ close all connections."""
    rabbitmq(run).close_connections("closed by an operator")


def restart_rabbitmq(run: Run) -> None:
    """Stop the node of RabbitMQ in an orderly way, and start it again."""
    rabbitmq(run).restart()


def kill_rabbitmq(run: Run) -> None:
    """Kill the node of RabbitMQ, and start it again."""
    rabbitmq(run).kill()
    rabbitmq(run).start()


def silent_broker(run: Run) -> None:
    """Let the relay's way to the broker take connections and bytes, and never answer; then lose them."""
    with run.stage.hearing(run.stage.relays[0], "broker away"):
        run.stage.way.freeze()
    run.stage.way.off()
    run.stage.way.on()


def frozen_broker(run: Run) -> None:
    """Stop the broker's process for everyone: the system goes on taking connections in its name."""
    pid = run.stage.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        run.wait_for_sales(30)
    finally:
        os.kill(pid, signal.SIGCONT)

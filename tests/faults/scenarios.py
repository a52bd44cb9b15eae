"""Every scenario: the fault, and the time that is allowed for the recovery."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from . import effort
from .steps import brokers, database, processes
from .steps.run import Step, times, work

# A relay polls within this time. A worker reconnects within the rest, or a handler that failed without its
# database is retried and found by an idle worker.
SOON = effort.POLL_INTERVAL + max(effort.RECONNECT, effort.RETRY + effort.IDLE_CHECK)

# Relays check for overdue deliveries every quarter of CONFIRM_TIMEOUT; then an idle worker checks Redis.
CONFIRMATION = effort.CONFIRM_TIMEOUT * 5 / 4 + effort.IDLE_CHECK

# Without notifications each poll dispatches one delivery of an ordering key.
WITHOUT_NOTIFICATIONS = effort.POLL_INTERVAL * (effort.IN_A_ROW - 1)

# Messages that may have killed a worker run one by one. Before the last kill such a message may have been
# postponed for this time, because another one was running. Unconfirmed deliveries wait at the same time.
QUARANTINE_DELAY = timedelta(seconds=5)
QUARANTINE = max(QUARANTINE_DELAY, CONFIRMATION)


# A relay asks an idle broker for its marker every two seconds. After a loss it waits ten seconds for the
# outcomes of messages that workers have got, and then checks every two seconds.
LOSS = timedelta(seconds=14)

# A worker's thread that finishes a message while the connection to RabbitMQ is lost acknowledges the message
# after this time, and takes no other message until then. Sometimes this happens to all threads at once.
ACKNOWLEDGEMENT = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault while a publisher, a relay and a worker run.

    Args:
        fault: the description for the reference.
        steps: the steps of one round, in order.
        within: the recovery that is allowed: from the end of the last step until all effects exist, without
            the work on the backlog.
        repeated: whether a soak repeats the steps; otherwise it makes them longer.
    """

    name: str
    fault: str
    steps: tuple[Step, ...]
    within: timedelta = SOON
    with_brokers: tuple[str, ...] = ("redis", "rabbitmq")
    repeated: bool = True


SCENARIOS = (
    Scenario(
        name="relay killed",
        fault="`kill -9` of the relay at a random moment, several times; each time another relay starts",
        steps=times(3, processes.kill_relay, processes.start_relay),
    ),
    Scenario(
        name="worker killed",
        fault="`kill -9` of the worker while a handler of each kind is running",
        steps=times(2, processes.kill_worker_at_work, processes.start_worker),
        within=QUARANTINE,
    ),
    Scenario(
        name="database restarted",
        fault="PostgreSQL restarts as by `pg_ctl restart -m immediate`",
        steps=(database.restart_postgres,),
    ),
    Scenario(
        name="connections terminated",
        fault="`pg_terminate_backend` of random connections of relay, worker and publisher, two at a time",
        steps=(database.terminate_backends,),
    ),
    Scenario(
        name="notifications lost",
        fault="the relay's LISTEN connection is half-open: closed at the server, but not at the relay",
        steps=(database.lose_notifications,),
        within=SOON + WITHOUT_NOTIFICATIONS,
    ),
    Scenario(
        name="idle connections",
        fault="200 additional idle connections, every tenth in an open transaction",
        steps=(database.idle_connections,),
    ),
    Scenario(
        name="publish refused",
        fault="publishing fails with `disk_full` for some events, and then with `statement_timeout` for all",
        steps=(database.full_disk, database.lock_out_publishers),
    ),
    Scenario(
        name="late commit",
        fault="a transaction publishes and stays open while others publish, commit and are delivered",
        steps=(database.late_transaction,),
        repeated=False,
    ),
    Scenario(
        name="wrong clock",
        fault="a second relay runs on a host whose clock is an hour ahead, then an hour behind",
        steps=(processes.wrong_clock(1), processes.wrong_clock(-1)),
    ),
    Scenario(
        name="relays stopped",
        fault="two relays get `SIGSTOP` and `SIGCONT`, in turn and at the same time",
        steps=(processes.second_relay, *times(2, processes.stop_relays_in_turn)),
    ),
    Scenario(
        name="broker silent",
        fault="the relay's broker accepts connections and never answers; then it loses the received messages",
        steps=(brokers.silent_broker,),
    ),
    Scenario(
        name="broker frozen",
        fault="the broker's process gets `SIGSTOP`, which affects relay and worker",
        steps=(brokers.frozen_broker,),
    ),
    Scenario(
        name="Redis flushed",
        fault="`FLUSHALL` with messages in Redis and in the worker",
        steps=(brokers.flush_redis,),
        within=CONFIRMATION,
        with_brokers=("redis",),
    ),
    Scenario(
        name="Redis restarted",
        fault="Redis is killed with messages in it, and started again without persistence",
        steps=(brokers.restart_redis,),
        within=CONFIRMATION,
        with_brokers=("redis",),
    ),
    Scenario(
        name="Redis flushed, late timeout",
        fault="`FLUSHALL` while the relay waits an hour for confirmations, as by default",
        steps=(brokers.wait_long_for_confirmations, brokers.flush_redis),
        within=LOSS + SOON,
        with_brokers=("redis",),
        repeated=False,
    ),
    Scenario(
        name="Redis restored, late timeout",
        fault="Redis is killed, and starts with a snapshot that is older than its last messages",
        steps=(brokers.wait_long_for_confirmations, brokers.restore_redis),
        within=LOSS + SOON,
        with_brokers=("redis",),
        repeated=False,
    ),
    Scenario(
        name="RabbitMQ reset, late timeout",
        fault="`rabbitmqctl reset` deletes all queues while the relay waits an hour for confirmations",
        steps=(brokers.wait_long_for_confirmations, brokers.reset_rabbitmq),
        within=LOSS + SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
        repeated=False,
    ),
    Scenario(
        name="RabbitMQ closes connections",
        fault="the server closes all connections (`rabbitmqctl close_all_connections`)",
        steps=(brokers.close_connections, work, brokers.close_connections),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
    Scenario(
        name="RabbitMQ restarted",
        fault="the node is stopped and started",
        steps=(brokers.restart_rabbitmq,),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
    Scenario(
        name="RabbitMQ killed",
        fault="`kill -9` of the node, which is then started again",
        steps=(brokers.kill_rabbitmq,),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
)


def scenarios_with(broker: str) -> list[Scenario]:
    """Return the scenarios of a broker."""
    return [scenario for scenario in SCENARIOS if broker in scenario.with_brokers]

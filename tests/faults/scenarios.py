"""Every scenario: what goes wrong, and how soon all must be well again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from tests.faults import effort
from tests.faults.steps import brokers, database, processes
from tests.faults.steps.run import Step, times, work

# A relay looks this often, while a worker comes back to its broker, or what failed for want of the database
# is put off.
SOON = effort.POLL_INTERVAL + max(effort.RECONNECT, effort.RETRY + effort.LOOK)

# What nobody confirms is looked at every quarter of CONFIRM_TIMEOUT, and then an idle worker looks at Redis.
CONFIRMATION = effort.CONFIRM_TIMEOUT * 5 / 4 + effort.LOOK

# Without notifications a lane goes one step further with each look.
UNHEARD = effort.POLL_INTERVAL * (effort.IN_A_ROW - 1)

# What a worker may have died of runs alone. Before the last kill a suspect may have been sent back for
# as long as this, since another one was held in its work. What nobody confirms waits meanwhile.
SUSPECT_DELAY = timedelta(seconds=5)
SUSPECTS = max(SUSPECT_DELAY, CONFIRMATION)


# A thread of a worker that is done with a message while the connection to RabbitMQ is gone acknowledges it so
# much later, and takes no other message until then. Now and then that happens to all of them.
ACKNOWLEDGEMENT = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What goes wrong while others publish.

    Args:
        says: the fault in words, for the reference.
        steps: what happens, in this order, as often as the rounds say.
        within: the recovery that is allowed, from the end of the last step until everything is delivered,
            beside the work on what was behind by then.
        repeated: whether a soak repeats the steps; else it makes them longer.
    """

    name: str
    says: str
    steps: tuple[Step, ...]
    within: timedelta = SOON
    with_brokers: tuple[str, ...] = ("redis", "rabbitmq")
    repeated: bool = True


SCENARIOS = (
    Scenario(
        name="relay killed",
        says="`kill -9` of the relay at a random point of its work, repeatedly; each time another is started",
        steps=times(3, processes.kill_relay, processes.start_relay),
    ),
    Scenario(
        name="worker killed",
        says="`kill -9` of the worker with a handler of each kind in the middle of its work",
        steps=times(2, processes.kill_worker_at_work, processes.start_worker),
        within=SUSPECTS,
    ),
    Scenario(
        name="database restarted",
        says="PostgreSQL restarted as by `pg_ctl restart -m immediate`",
        steps=(database.restart_postgres,),
    ),
    Scenario(
        name="connections terminated",
        says="`pg_terminate_backend` of random connections of relay, worker and publisher, some every 100 ms",
        steps=(database.terminate_backends,),
    ),
    Scenario(
        name="relay deaf",
        says="the relay's LISTEN connection half-open: gone at the server, and nobody told the relay",
        steps=(database.deaf_relay,),
        within=SOON + UNHEARD,
    ),
    Scenario(
        name="idle connections",
        says="200 idle connections beside, every tenth in an open transaction",
        steps=(database.idle_connections,),
    ),
    Scenario(
        name="publish refused",
        says="publishing fails with `disk_full` for some, and with `statement_timeout` for all",
        steps=(database.full_disk, database.lock_out_publishers),
    ),
    Scenario(
        name="late commit",
        says="a transaction publishes and stays open while others publish, commit and are delivered",
        steps=(database.late_transaction,),
        repeated=False,
    ),
    Scenario(
        name="wrong clock",
        says="a relay whose host's clock is an hour ahead, then one an hour behind, beside one that is right",
        steps=(processes.wrong_clock(1), processes.wrong_clock(-1)),
    ),
    Scenario(
        name="relays stopped",
        says="two relays in `SIGSTOP` and `SIGCONT`, in turn and at the same time",
        steps=(processes.second_relay, *times(2, processes.stop_relays_in_turn)),
    ),
    Scenario(
        name="broker silent",
        says="the relay's broker takes connections and never answers; then what it was sent is gone",
        steps=(brokers.silent_broker,),
    ),
    Scenario(
        name="broker frozen",
        says="the broker's process in `SIGSTOP`, for relay and worker alike",
        steps=(brokers.frozen_broker,),
    ),
    Scenario(
        name="Redis flushed",
        says="`FLUSHALL` with messages in Redis and in the worker's hands",
        steps=(brokers.flush_redis,),
        within=CONFIRMATION,
        with_brokers=("redis",),
    ),
    Scenario(
        name="Redis restarted",
        says="Redis killed with messages in it, and started again without persistence",
        steps=(brokers.restart_redis,),
        within=CONFIRMATION,
        with_brokers=("redis",),
    ),
    Scenario(
        name="RabbitMQ closes connections",
        says="all connections closed by the server (`rabbitmqctl close_all_connections`)",
        steps=(brokers.close_connections, work, brokers.close_connections),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
    Scenario(
        name="RabbitMQ restarted",
        says="the node stopped and started",
        steps=(brokers.restart_rabbitmq,),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
    Scenario(
        name="RabbitMQ killed",
        says="`kill -9` of the node, which is then started again",
        steps=(brokers.kill_rabbitmq,),
        within=SOON + ACKNOWLEDGEMENT,
        with_brokers=("rabbitmq",),
    ),
)


def scenarios_with(broker: str) -> list[Scenario]:
    """Return the scenarios that a broker takes part in."""
    return [scenario for scenario in SCENARIOS if broker in scenario.with_brokers]

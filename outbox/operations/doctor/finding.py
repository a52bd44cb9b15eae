"""The findings of the doctor: their stable ids, their severity and their remedies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self


class Severity(StrEnum):
    """How bad a finding is: an error breaks a promise, a warning makes it depend on luck."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Kind(NamedTuple):
    """The severity and the remedy of all findings with one id."""

    severity: Severity
    remedy: str


_ERROR, _WARNING, _INFO = Severity

FINDINGS: dict[str, Kind] = {
    "not-examined": Kind(
        _WARNING, "Make the server reachable, or allow the statement, and run the doctor again."
    ),
    "fsync-off": Kind(_ERROR, "Set fsync = on: a crash of the server otherwise loses committed events."),
    "synchronous-commit-off": Kind(
        _ERROR, "Set synchronous_commit = on: a crash otherwise loses the events of the last commits."
    ),
    "read-only": Kind(_ERROR, "Connect relays and workers to the primary server."),
    "idle-timeout": Kind(
        _ERROR,
        "Set idle_in_transaction_session_timeout above DISPATCH_TIMEOUT for the role of relays, or to 0: it "
        "ends the transaction of a claim while the broker takes the batch.",
    ),
    "statement-timeout": Kind(
        _WARNING, "Set statement_timeout for the role of relays and workers to some seconds or more, or to 0."
    ),
    "few-connections": Kind(
        _WARNING, "Raise max_connections, use a pool for the web processes, or run fewer processes."
    ),
    "clock-skew": Kind(_WARNING, "Synchronise the clocks of the hosts and the database server (NTP)."),
    "old-transaction": Kind(
        _WARNING, "End the transaction: until then no dead row can be removed, and claims read all of them."
    ),
    "autovacuum-off": Kind(_ERROR, "Set autovacuum = on, also for the tables of the outbox."),
    "dead-rows": Kind(
        _WARNING,
        "Find out why autovacuum does not keep pace: an old transaction, a replication slot, or its limits.",
    ),
    "redis-evicts": Kind(
        _ERROR, "Set maxmemory-policy noeviction, or use another Redis for Dramatiq than for the cache."
    ),
    "redis-full": Kind(_ERROR, "Raise maxmemory, or start more workers: relays dispatch nothing above 80 %."),
    "redis-without-persistence": Kind(
        _INFO,
        "Nothing to do: relays redeliver the messages that a restart of Redis loses. With appendonly yes it "
        "loses fewer.",
    ),
    "redis-small-messages": Kind(
        _WARNING, "Set proto-max-bulk-len above MAX_PAYLOAD_BYTES, or lower MAX_PAYLOAD_BYTES."
    ),
    "no-retries": Kind(
        _WARNING, "Add dramatiq.middleware.Retries to DRAMATIQ_BROKER, unless failures should be final."
    ),
    "no-time-limit": Kind(
        _INFO,
        "Add dramatiq.middleware.TimeLimit to DRAMATIQ_BROKER: a handler that hangs holds its thread.",
    ),
    "system-check": Kind(_WARNING, "Follow the hint of the system check."),
    "mixed-versions": Kind(_WARNING, "Finish the deployment: restart the processes with another version."),
    "queue-without-worker": Kind(
        _ERROR,
        "Start a worker that serves the queue: rundramatiq, or run_relay --with-worker with EmbeddedBroker.",
    ),
    "worker-of-unknown-queue": Kind(
        _INFO, "Restart the worker, or remove the queue from its --queues: no handler of this code uses it."
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fact that breaks a promise, or may do so.

    Args:
        id: a key of `FINDINGS`, stable.
        severity: error, warning or info.
        fact: a sentence without a full stop, with the offending value.
        remedy: the repair.
    """

    id: str
    severity: Severity
    fact: str
    remedy: str

    @classmethod
    def of(cls, id: str, fact: str, *, remedy: str = "", severity: Severity | None = None) -> Self:
        """Return a finding with the severity and the remedy of its id, unless others are given."""
        kind = FINDINGS[id]
        return cls(id=id, severity=severity or kind.severity, fact=fact, remedy=remedy or kind.remedy)

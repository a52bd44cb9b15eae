"""The report about the health of one database's outbox, for commands, pages, probes and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .blocked_keys import BlockedKey

# Counting stops here, so that a report about a long backlog costs no more.
COUNT_LIMIT = 100_000
# Handlers, blocked keys and paused handlers of one report at most.
LIST_LIMIT = 20
# Processes of one report at most.
PROCESS_LIMIT = 1000


class Verdict(StrEnum):
    """The judgement of a report: its worst problem."""

    OK = "ok"
    WARNING = "warning"
    TROUBLE = "trouble"


class ProblemKind(StrEnum):
    """The kinds of problems, the worst first; the ids are stable."""

    NO_RELAY = "no_relay"
    RELAY_IN_TROUBLE = "relay_in_trouble"
    NO_WORKER = "no_worker"
    NOTHING_CONFIRMED = "nothing_confirmed"
    LAG = "lag"
    UNKNOWN_HANDLER = "unknown_handler"
    HANDLER_FAILS = "handler_fails"
    BLOCKED_KEY = "blocked_key"
    PUT_OFF = "put_off"
    OVERDUE = "overdue"
    RELAY_POLLS = "relay_polls"
    PAUSED_HANDLER = "paused_handler"
    UNHANDLED_TOPIC = "unhandled_topic"

    @property
    def verdict(self) -> Verdict:
        """The verdict of a report with a problem of this kind."""
        return Verdict.WARNING if self in _WARNINGS else Verdict.TROUBLE


_WARNINGS = (
    ProblemKind.PUT_OFF,
    ProblemKind.OVERDUE,
    ProblemKind.RELAY_POLLS,
    ProblemKind.PAUSED_HANDLER,
    ProblemKind.UNHANDLED_TOPIC,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem.

    Args:
        kind: its kind, a stable id.
        cause: a sentence without a full stop, for an operator.
        subject: the handler, queue, ordering key, process or topic; empty if there is none.
        count: the deliveries, processes or events that have the problem, counted up to `COUNT_LIMIT`.
        age_s: for how many seconds it has lasted; None if that is unknown.
    """

    kind: ProblemKind
    cause: str
    subject: str = ""
    count: int = 0
    age_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The figures of the backlog; counts stop at `COUNT_LIMIT`.

    Args:
        due: pending deliveries that a relay may claim now.
        oldest_due_s: the wait of the oldest due delivery or ready batch, also if it was put off; in seconds.
        unconfirmed: dispatched deliveries without an outcome.
        oldest_unconfirmed_s: the time since the oldest of them was due, in seconds.
        failed: deliveries that are failed now.
        throughput_per_minute: runs that succeeded in the last full minute; None without statistics.
        scheduled: pending deliveries with a due time in the future.
        waiting: pending deliveries that wait for a batch, an ordering key, or a paused handler.
        put_off: pending deliveries that were due before and did not run.
        overdue: unconfirmed deliveries past `CONFIRM_TIMEOUT`.
    """

    due: int
    oldest_due_s: float
    unconfirmed: int
    oldest_unconfirmed_s: float
    failed: int
    throughput_per_minute: int | None
    scheduled: int
    waiting: int
    put_off: int
    overdue: int

    @property
    def lag_s(self) -> float:
        """The time since the oldest delivery was due that has not run yet, in seconds."""
        return max(self.oldest_due_s, self.oldest_unconfirmed_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueHealth:
    """The unconfirmed deliveries and the live workers of one queue.

    Args:
        name: the queue; empty for all queues that no handler of this process has.
        workers: live worker processes; `threads` is the sum of their threads.
    """

    name: str
    unconfirmed: int
    oldest_unconfirmed_s: float
    workers: int
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessHealth:
    """One relay or worker with a heartbeat within the last day.

    Args:
        queues: the queues that it serves; empty for a relay of all queues.
        seen_s: seconds since its last heartbeat.
        state_s: seconds since it has had its state.
        dispatched: deliveries that a relay has dispatched since its start.
        last_dispatch_s: seconds since it dispatched the last one; None without one.
        problems: the kind and the cause of each problem that it reports.
    """

    kind: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    threads: int
    state: str
    state_s: float
    detail: str
    alive: bool
    seen_s: float
    dispatched: int
    last_dispatch_s: float | None
    problems: tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PausedHealth:
    """A paused handler, with the number of its deliveries that wait, and the seconds since the pause."""

    handler: str
    reason: str
    waiting: int
    paused_at: datetime
    paused_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The health of one database's outbox.

    Args:
        verdict: ok, or the verdict of the worst problem.
        sentence: the verdict and the worst problems in one sentence.
        problems: all problems, the worst first.
        queues: the queues of this process's handlers.
        processes: the relays and workers, the last seen first.
        paused: at most `LIST_LIMIT` paused handlers, by name.
        blocked_keys: at most `LIST_LIMIT` blocked ordering keys, by handler.
        measured_at: an aware time.
    """

    database: str
    verdict: Verdict
    sentence: str
    problems: tuple[Problem, ...]
    figures: Figures
    queues: tuple[QueueHealth, ...]
    processes: tuple[ProcessHealth, ...]
    paused: tuple[PausedHealth, ...]
    blocked_keys: tuple[BlockedKey, ...]
    measured_at: datetime

    @property
    def summary(self) -> str:
        """The sentence without its first word, the verdict."""
        return self.sentence.partition(": ")[2]

    def alive(self, kind: str) -> int:
        """Return the number of live processes of a kind, `relay` or `worker`."""
        return sum(process.alive for process in self.processes if process.kind == kind)

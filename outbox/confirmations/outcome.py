"""The outcome of one run of a delivery."""

from __future__ import annotations

from datetime import timedelta
from sys import getsizeof
from typing import NamedTuple

from outbox.events import DeliveryRef
from outbox.models import Delivery, storable
from outbox.run import RecordedRetry, Run

# As text: the members of an enumeration take several times as long to compare.
_State = Delivery.State
_PENDING = str(_State.PENDING)
_SUCCEEDED = str(_State.SUCCEEDED)
_FAILED = str(_State.FAILED)
_DISCARDED = str(_State.DISCARDED)
# Stored options that remove those of an earlier retry.
NO_OPTIONS = "{}"
_NO_WAIT = timedelta()


# A tuple, since a worker makes one for each event: a frozen dataclass takes five times as long.
class Outcome(NamedTuple):
    """The outcome of one run of a delivery.

    Args:
        delivery: the delivery.
        database: the alias of its database.
        handler: the name of its handler.
        state: the new state; empty if it is recorded already.
        result: the column of the statistics that counts the run; empty if the message did not run.
        duration_s: the duration of the run.
        error: the error with its traceback, or the reason of another state.
        wait: the delay until a pending delivery is due.
        ordering_key: the key by which the handler is ordered; empty if it is not.
        unstarted: whether the delivery did not run, so that its dispatch is no attempt.
        waits_for: the condition that a pending delivery waits for.
        message_options: the options of the next message, as JSON; empty to keep the stored options.
    """

    delivery: DeliveryRef
    database: str
    handler: str
    state: str
    result: str
    duration_s: float
    error: str = ""
    wait: timedelta = _NO_WAIT
    ordering_key: str = ""
    unstarted: bool = False
    waits_for: str = ""
    message_options: str = ""

    @classmethod
    def succeeded(cls, run: Run) -> list[Outcome]:
        """Report that the handler returned."""
        return cls._of_run(run, "" if run.settled else _SUCCEEDED, "succeeded")

    @classmethod
    def retried(cls, run: Run, error: str, retry: RecordedRetry, batch_wait: timedelta) -> list[Outcome]:
        """Report that the handler failed, and that `Retries` wants another run.

        Args:
            batch_wait: the wait of the handler's batches. A batch that fails waits for its retry as a batch.
                A delivery joins a batch within `batch_wait` before its due time, so this is added.
        """
        return cls._due_again(run, "retried", error, retry, batch_wait)

    @classmethod
    def put_off(cls, run: Run, retry: RecordedRetry, batch_wait: timedelta) -> list[Outcome]:
        """Report that a middleware skipped the run, and wants it later.

        Args:
            batch_wait: as for `retried`.
        """
        reason = f"a middleware put the delivery off for {retry.delay}"
        return [one._replace(unstarted=True) for one in cls._due_again(run, "", reason, retry, batch_wait)]

    @classmethod
    def _due_again(
        cls, run: Run, result: str, error: str, retry: RecordedRetry, batch_wait: timedelta
    ) -> list[Outcome]:
        wait, waits_for = retry.delay, ""
        if run.batched:
            wait, waits_for = retry.delay + batch_wait, str(Delivery.WaitsFor.BATCH)
        return [
            one._replace(waits_for=waits_for, message_options=retry.options) if one.state == _PENDING else one
            for one in cls._of_run(run, _PENDING, result, error, wait)
        ]

    @classmethod
    def failed(cls, run: Run, error: str) -> list[Outcome]:
        """Report that the handler failed, and that there is no retry."""
        return cls._of_run(run, _FAILED, "failed", error)

    @classmethod
    def discarded(cls, run: Run, reason: str) -> list[Outcome]:
        """Report that the delivery needs no run."""
        return cls._of_run(run, _DISCARDED, "", reason)

    @classmethod
    def split(cls, run: Run, error: str) -> list[Outcome]:
        """Report that a batch failed, and that its deliveries run one by one as if they had not run."""
        outcomes = cls._of_run(run, _PENDING, "retried", error)
        return [
            one._replace(message_options=NO_OPTIONS) if one.state == _PENDING else one for one in outcomes
        ]

    @classmethod
    def returned(cls, run: Run, reason: str) -> list[Outcome]:
        """Report that the run did not end, and that its deliveries may be dispatched again."""
        return cls._of_run(run, _PENDING, "", reason)

    @classmethod
    def not_started(
        cls, run: Run, reason: str = "", wait: timedelta = _NO_WAIT, message_options: str = ""
    ) -> list[Outcome]:
        """Report that the deliveries did not run, and may be dispatched again."""
        return [
            one._replace(unstarted=True, message_options=message_options)
            for one in cls._of_run(run, _PENDING, "", reason, wait)
        ]

    @property
    def delivery_id(self) -> int:
        """The primary key of the delivery."""
        return self.delivery.id

    @property
    def has_text(self) -> bool:
        """Return whether it has an error or message options."""
        return bool(self.error or self.message_options)

    @property
    def text_bytes(self) -> int:
        """The size of its error and its message options in memory."""
        return getsizeof(self.error) + getsizeof(self.message_options) if self.has_text else 0

    @property
    def is_final(self) -> bool:
        """Return whether the delivery does not run again, except for an operator."""
        return self.state != _PENDING

    @classmethod
    def _of_run(
        cls, run: Run, state: str, result: str, error: str = "", wait: timedelta = _NO_WAIT
    ) -> list[Outcome]:
        # The statistics are per event, so the events of a batch share its duration.
        duration_s = run.duration_s / max(len(run.deliveries), 1)
        database, handler, ordering_key = run.database, run.handler, run.ordering_key
        text = storable(error) if error else ""
        # The transaction of a settled run has recorded them.
        discarded = "" if run.settled else _DISCARDED
        outcomes = [
            cls(one, database, handler, state, result, duration_s, text, wait, ordering_key)
            for one in (run.undecided if run.discarded else run.deliveries)
        ]
        outcomes += [
            cls(one, database, handler, discarded, "", duration_s, storable(reason), wait, ordering_key)
            for one, reason in run.discarded.items()
        ]
        return outcomes

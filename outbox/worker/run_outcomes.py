"""The outcomes of a message, by the way in which it ended."""

from __future__ import annotations

from datetime import timedelta

from dramatiq.broker import MessageProxy

from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery
from outbox.registry import registry
from outbox.run import Run, RunObserver, describe


def of_processed(run: Run, message: MessageProxy, exception: BaseException | None) -> list[Outcome]:
    """Return the outcomes of a message after its run."""
    if run.split_error:
        return Outcome.split(run, run.split_error)
    if exception is None and message.failed and not run.settled:
        # Dramatiq calls no function for a failed message, and reports no error.
        moment = "after" if run.started else "before"
        return Outcome.failed(run, f"a middleware failed the message {moment} its run")
    if exception is None:
        return Outcome.succeeded(run)
    if run.retry is None or message.failed:
        return Outcome.failed(run, describe(exception))
    return Outcome.retried(run, describe(exception), run.retry, _batch_wait(run))


def of_skipped(run: Run, message: MessageProxy) -> list[Outcome]:
    """Return the outcomes of a message that a middleware skipped."""
    if message.failed:
        return Outcome.failed(run, f"skipped: {message._exception}")
    if run.retry is not None:
        return Outcome.put_off(run, run.retry, _batch_wait(run))
    return Outcome.discarded(run, "skipped by a middleware")


def _batch_wait(run: Run) -> timedelta:
    handler = registry.handlers.get(run.handler)
    return handler.batch.wait if handler is not None and handler.batch else timedelta()


def notify(observer: RunObserver, outcomes: list[Outcome]) -> None:
    """Pass the outcome of a run to its observer, which has one delivery; a duplicate has none."""
    if not outcomes:
        observer.withdrawn()
        return
    (outcome,) = outcomes
    succeeded = outcome.state in ("", Delivery.State.SUCCEEDED)
    observer.reported(failed=not succeeded if outcome.is_final else None)

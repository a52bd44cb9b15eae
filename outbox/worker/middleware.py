"""The Dramatiq middleware: the worker's side of a delivery."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from django.db import Error
from dramatiq import Broker, Middleware, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage

from outbox.conf import get_settings
from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery
from outbox.observability.telemetry import worker_started, worker_stopped
from outbox.process_fields import process_fields
from outbox.registry import registry
from outbox.run import MALFORMED, Run

from . import message_runs, run_outcomes
from .greenlets import allow_database_beside_event_loop
from .heartbeat_thread import WorkerThread, end_heartbeats, served_queues, start_heartbeats
from .message_runs import CurrentRun, read_run, report
from .message_runs import run_context as _run_context
from .poison import QUARANTINE_DELAY, quarantine
from .retries import record_retries
from .run_context import RunContext
from .unknown_actors import accept_unknown_actors, return_unknown
from .unwritten_outcomes import UnwrittenOutcomes

logger = logging.getLogger(__name__)

UNREADABLE_DELAY = timedelta(seconds=30)


class OutboxMiddleware(Middleware):
    """Restores the event's context, and reports the outcome of each delivery.

    It is the first middleware, so that its after-hooks run last, when `Retries` has decided.
    """

    def __init__(self) -> None:
        self._heartbeats: dict[Worker, list[WorkerThread]] = {}
        self._unwritten_outcomes: dict[Worker, UnwrittenOutcomes] = {}

    @property
    def actor_options(self) -> set[str]:
        """The option of a `TransactionalActor`."""
        return {"former_names"}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Make the message's event and context current.

        Raises:
            SkipMessage: if the message must not run.
        """
        message_runs.begin()
        try:
            self._prepare(broker, message)
        except SkipMessage:
            message_runs.decide(message)
            raise
        except Exception as error:
            # Dramatiq would only log the error, and call the function with the envelope.
            message_runs.return_unprepared(message, error)
            message_runs.decide(message)
            raise SkipMessage("the run could not be prepared") from error

    def _prepare(self, broker: Broker, message: MessageProxy) -> None:
        try:
            run = read_run(message)
        except MALFORMED as error:
            # The function would get the envelope as its arguments, and the run would have no outcome.
            logger.exception("message %s carries malformed outbox options", message.message_id)
            message.fail()
            raise SkipMessage("malformed outbox options") from error
        if registry.name_of(message.actor_name) not in broker.actors:
            return_unknown(run, message)
        if run is None:
            return
        if run.unreadable:
            reason = f"a worker cannot read the message: {run.unreadable}"
            self._return_unstarted(run, reason, UNREADABLE_DELAY)
        handler = registry.handlers.get(run.handler)
        if handler is not None and run.batched and handler.batch is None:
            # The handler took batches when the message was sent. The relay now sends each event singly.
            self._return_unstarted(run, "the handler no longer takes a batch", timedelta())
        elif handler is not None and handler.ordered:
            run.ordering_key = run.event.key
        if handler is not None and handler.observer is not None:
            run.observer = handler.observer(run)
        # Most runs start without a query. Only crashed deliveries, and duplicates that the relay or RabbitMQ
        # marks, are checked first. Redis marks no duplicates.
        duplicate = run.earlier_messages or vars(message).get("redelivered")
        try:
            alone = bool(duplicate or quarantine.has_crashed(run)) and self._check(run)
            run_context = RunContext(run, alone=alone, outer=_run_context.get())
            _run_context.set(run_context)
            run_context.__enter__()
        except BaseException:
            quarantine.leave()
            raise

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Report success, retry or failure."""
        with CurrentRun(message) as run:
            if run is not None:
                outcomes = run_outcomes.of_processed(run, message, exception)
                if run.observer is not None:
                    run.observer.ended(exception)
                report(run, outcomes, exception)
                if message.failed:
                    _acknowledge(broker, message)
        if run is not None and run.observer is not None:
            run_outcomes.notify(run.observer, outcomes)
        _wait_for_room(message)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Report a skipped message: as failed, as put off, or as discarded if no middleware did either."""
        with CurrentRun(message) as run:
            outcomes = [] if run is None or run.duplicate else run_outcomes.of_skipped(run, message)
            if run is not None and outcomes:
                report(run, outcomes)
                if message.failed:
                    _acknowledge(broker, message)
        if run is not None and run.observer is not None:
            run_outcomes.notify(run.observer, outcomes)
        _wait_for_room(message)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Keep retries and unknown handlers out of the broker, and scan for crashes of other workers."""
        record_retries(broker)
        accept_unknown_actors(broker)
        allow_database_beside_event_loop(broker)
        quarantine.start()
        self._unwritten_outcomes[worker] = UnwrittenOutcomes(broker, running=quarantine.running).start()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the heartbeats of the worker."""
        self._heartbeats[worker] = start_heartbeats(broker, worker)
        worker_started.send_robust(OutboxMiddleware, **_process(broker, worker))

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Delete the in-flight log, since a shutdown is no crash, and let waiting threads end."""
        quarantine.stop()
        confirmations.end_waits()
        for thread in self._heartbeats.get(worker, ()):
            thread.note_stopping()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Flush the buffered outcomes, when all worker threads have ended, and delete the heartbeats."""
        confirmations.close()
        if unwritten := self._unwritten_outcomes.pop(worker, None):
            unwritten.stop()
        end_heartbeats(self._heartbeats.pop(worker, []))
        worker_stopped.send_robust(OutboxMiddleware, **_process(broker, worker))

    def _return_unstarted(self, run: Run, reason: str, delay: timedelta) -> None:
        """Return the deliveries of a message that this worker cannot run to pending.

        Raises:
            SkipMessage: always.
        """
        confirmations.add(*Outcome.not_started(run, reason, delay))
        raise SkipMessage(reason)

    def _check(self, run: Run) -> bool:
        """Check whether a run is needed, and may start now; return whether it runs in quarantine.

        Raises:
            SkipMessage: if not.
        """
        if not self._check_rows(run):
            return False
        self._quarantine(run)
        # Another message of the delivery may have run while this one waited.
        self._check_rows(run)
        return True

    def _check_rows(self, run: Run) -> bool:
        """Return whether a delivery of the run has crashed.

        Raises:
            SkipMessage: if no delivery is left to run.
        """
        try:
            ids = [one.id for one in run.deliveries]
            found = Delivery.objects.using(run.database).filter(pk__in=ids).only("event", "state", "crashes")
            rows = {row.ref: row for row in found}
        except Error:
            logger.warning("could not check delivery %s, so it runs", ids, exc_info=True)
            return False
        # A row of the same id and another event is another delivery.
        rows = {one: rows[one] for one in run.deliveries if one in rows}
        limit = get_settings().max_crashes
        done = {one for one, row in rows.items() if not row.may_run(max_crashes=limit)}
        if done and done == rows.keys():
            raise SkipMessage("the delivery of this duplicate is settled, or has killed too many workers")
        return any(row.crashes for row in rows.values())

    def _quarantine(self, run: Run) -> None:
        """Wait until a run that has crashed may run alone.

        Raises:
            SkipMessage: if it returns to the table instead.
        """
        if len(run.deliveries) > 1:
            reason = "a worker died while it ran the batch; its events run one by one"
            confirmations.add(*Outcome.returned(run, reason))
            raise SkipMessage(reason)
        if not quarantine.enter():
            reason = "waits until no other quarantined delivery runs"
            confirmations.add(*Outcome.not_started(run, reason, QUARANTINE_DELAY))
            raise SkipMessage(reason)


def _process(broker: Broker, worker: Worker) -> dict[str, Any]:
    """Return the fields of a worker process for its telemetry."""
    queues = served_queues(broker, worker)
    return {**process_fields(), "queues": queues, "threads": worker.worker_threads}


def _wait_for_room(message: MessageProxy) -> None:
    """Wait while the buffer of outcomes is full; the outcome of this message is in it already."""
    options = message.options.get("outbox")
    if type(options) is dict and type(database := options.get("database")) is str:
        confirmations.wait_for_room(database)


def _acknowledge(broker: Broker, message: MessageProxy) -> None:
    """Let Dramatiq acknowledge a failed message, since the table keeps the failure.

    The hooks of a rejected message run nevertheless: `Results` stores the exception there.
    """
    try:
        broker.emit_before("nack", message)
        broker.emit_after("nack", message)
    finally:
        message.failed = False

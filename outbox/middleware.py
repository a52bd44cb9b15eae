"""The Dramatiq middleware: the worker's side of a delivery."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from django.db import Error
from dramatiq import Broker, Message, Middleware, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Interrupt, Retries, SkipMessage

from . import packs
from .at_work import AtWork
from .conf import get_settings
from .confirmations import confirmations
from .crashes import SUSPECT_DELAY, crashes
from .models import Delivery
from .outcomes import Outcome
from .registry import registry
from .runs import MALFORMED, Run, describe

logger = logging.getLogger(__name__)

# A message for a handler that this worker does not know yet (it is older than the relay) goes back.
UNKNOWN_ACTOR_DELAY = timedelta(seconds=30)
UNREADABLE_DELAY = timedelta(seconds=30)
LOST_RETRY_DELAY = timedelta(seconds=15)

_at_work: ContextVar[AtWork | None] = ContextVar("outbox_at_work", default=None)


class OutboxMiddleware(Middleware):
    """Restores an event's context, and reports what became of each delivery.

    It stands first among the middleware, so that its after-hooks run last, when `Retries` has decided.
    """

    # The publishers need not build a message for the sake of our own enqueue hook: it only looks for
    # retries, which workers enqueue.
    ignores_relay = True

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Make the message's event and context current."""
        try:
            run = Run.from_message(message)
        except MALFORMED as error:
            # Its function would get the envelope in place of its arguments, and nobody would hear of the run.
            logger.exception("message %s carries malformed outbox options", message.message_id)
            message.fail()
            raise SkipMessage("malformed outbox options") from error
        if run is None:
            return
        if run.unreadable:
            self._give_back(run, message)
        handler = registry.handlers.get(run.handler)
        if handler is not None and run.batched and handler.batch is None:
            # Whatever it was when the message was sent, its function takes one event now.
            run.packed = True
        elif handler is not None and handler.ordered:
            run.lane = run.event.key
        # Only copies that the relay or RabbitMQ sent again, and what a worker died of, are looked up: the
        # normal way pays no query. A pack pays one: Redis does not say of what it gives back that it does,
        # and most of a pack may be settled by then.
        pack = run.packed and (run.retries or len(run.deliveries) > 1)
        again = pack or run.redelivered or vars(message).get("redelivered")
        try:
            alone = bool(again or crashes.suspects(run)) and self._look_up(run)
            at_work = AtWork(run, alone=alone, around=_at_work.get())
            _at_work.set(at_work)
            at_work.__enter__()
        except BaseException:
            crashes.end_solitude()
            raise

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Notice that the running message has been enqueued again, for a retry."""
        at_work = _at_work.get()
        if at_work is not None and message.message_id == at_work.run.message_id:
            at_work.run.retry_delay_ms = delay or 0

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Report success, retry or failure."""
        with _Leaving(message) as run:
            if run is None:
                return
            if run.split:
                confirmations.add(*Outcome.returned(run, run.split))
            elif exception is None:
                confirmations.add(*Outcome.succeeded(run))
            elif run.retry_delay_ms is not None:
                delay = timedelta(milliseconds=run.retry_delay_ms)
                confirmations.add(*Outcome.retried(run, describe(exception), delay))
            elif message.failed or not _retries(broker):
                confirmations.add(*Outcome.failed(run, describe(exception)))
            else:
                # Neither given up nor enqueued again: the broker was away when a retry was due.
                confirmations.add(*Outcome.returned(run, describe(exception), LOST_RETRY_DELAY))

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Report a message that was not run: failed if a middleware said so, else discarded."""
        with _Leaving(message) as run:
            if run is None or run.left:
                return
            if message.failed:
                confirmations.add(*Outcome.failed(run, f"skipped: {message._exception}"))
            else:
                confirmations.add(*Outcome.discarded(run, "skipped by a middleware"))

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Give back a delivery whose handler this worker does not know."""
        if message.actor_name in broker.actors:
            return
        try:
            run = Run.from_message(message)
        except MALFORMED:
            return
        if run is not None:
            reason = f"a worker does not know the handler {message.actor_name!r}; is it older than the relay?"
            confirmations.add(*Outcome.not_begun(run, reason, UNKNOWN_ACTOR_DELAY))

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Look at what other workers died of, before anything runs."""
        packs.ending.clear()
        crashes.open()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Say that what is left undone from now on is no crash, and let packs begin nothing more."""
        packs.ending.set()
        crashes.close()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Flush what is buffered, once no thread runs any more."""
        confirmations.close()

    def _give_back(self, run: Run, message: MessageProxy) -> None:
        """Leave a message to a worker of another release, in the form that the relay gives it then.

        Raises:
            SkipMessage: always.
        """
        reason = f"a worker cannot read the message: {run.unreadable}"
        if get_settings().confirm:
            confirmations.add(*Outcome.not_begun(run, reason, UNREADABLE_DELAY))
        else:
            # Nothing would bring it back, so it goes where a broker keeps what has failed.
            logger.error("message %s is left to the dead letters: %s", message.message_id, reason)
            message.fail()
        raise SkipMessage(reason)

    def _look_up(self, run: Run) -> bool:
        """Look whether a copy of a message need run, and may run now; return whether it has to run alone.

        Raises:
            SkipMessage: if not.
        """
        if not self._crashed(run):
            return False
        self._suspect(run)
        # It may have waited for another copy of its own message.
        self._crashed(run)
        return True

    def _crashed(self, run: Run) -> bool:
        """Return whether a worker has died of a run; of a pack, leave out what is settled instead.

        Raises:
            SkipMessage: if the run has nothing left to do.
        """
        try:
            deliveries = Delivery.objects.using(run.database).filter(pk__in=run.deliveries)
            rows = {row.pk: row for row in deliveries.only("status", "crashes")}
        except Error:
            logger.warning("could not look up delivery %s, so it runs", run.deliveries, exc_info=True)
            return False
        limit = get_settings().max_crashes
        done = {pk for pk, row in rows.items() if not row.may_run(max_crashes=limit)}
        if done and done == rows.keys():
            raise SkipMessage(
                "another copy of a message whose delivery is settled, or that kills its workers"
            )
        suspects = {pk for pk, row in rows.items() if row.crashes}
        if run.packed:
            # The suspects come last, so that the others are done with when a worker dies.
            run.keep(sorted((one for one in run.deliveries if one not in done), key=suspects.__contains__))
            run.suspects = suspects
            return False
        return bool(suspects)

    def _suspect(self, run: Run) -> None:
        """Let a run that a worker may have died of go on alone.

        Raises:
            SkipMessage: if it is not to run now.
        """
        if len(run.deliveries) > 1:
            confirmations.add(*Outcome.returned(run, "a worker died while it ran the batch; one by one"))
            raise SkipMessage("a batch that a worker died of, whose deliveries go one by one")
        if not crashes.claim_solitude():
            confirmations.add(*Outcome.not_begun(run, "waits to run without other suspects", SUSPECT_DELAY))
            raise SkipMessage("another message that a worker may have died of runs now")


class _Leaving:
    """Gives the run that has been at work, if one has, and leaves it once what became of it is reported.

    If a time limit or a shutdown interrupts the report, the run stays: Dramatiq then says that the message
    has failed by that, which is reported in its place.
    """

    __slots__ = ("_at_work",)

    def __init__(self, message: MessageProxy) -> None:
        at_work = _at_work.get()
        # Another message's has been left here by an interrupt, or runs around this one.
        mine = at_work is not None and at_work.run.message_id == message.message_id
        self._at_work = at_work if mine else None

    def __enter__(self) -> Run | None:
        return None if self._at_work is None else self._at_work.run

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._at_work is not None and not (kind and issubclass(kind, Interrupt)):
            self._at_work.__exit__()
            _at_work.set(self._at_work.around)


def _retries(broker: Broker) -> bool:
    return any(isinstance(middleware, Retries) for middleware in broker.middleware)

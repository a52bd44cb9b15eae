"""Packs: deliveries that came in one message, each run, timed and confirmed by itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dramatiq
from django.db import Error, close_old_connections
from dramatiq.middleware import Interrupt, SkipMessage

from .at_work import AtWork
from .conf import get_settings
from .confirmations import confirmations
from .crashes import SUSPECT_DELAY, crashes
from .models import Delivery
from .outcomes import Outcome
from .registry import registry
from .retrying import retry_in
from .runs import Run, describe

logger = logging.getLogger(__name__)

# Rules that cannot be asked say nothing against another try.
UNRULED_DELAY = timedelta(seconds=15)

# Set while the worker ends: what has not begun then is for another one.
ending = threading.Event()


def work_off(pack: Run, actor: dramatiq.Actor[..., Any], call: Callable[[Run], object]) -> None:
    """Run the deliveries of a pack one after the other; give back what is not begun when it has to end.

    Args:
        call: runs one of them.
    """
    worker = _PackWorker(pack, actor, call)
    try:
        while pack.deliveries and not (worker.interrupted or ending.is_set()):
            worker.work_next()
    except Interrupt:
        # It came between two of them. Nothing is lost: what has an outcome already is not changed by another.
        actor.logger.warning("A pack was interrupted.", exc_info=True)
    if pack.deliveries:
        actor.logger.info("%d events of a pack go back to the table.", len(pack.deliveries))
        confirmations.add(*Outcome.not_begun(pack))
        pack.keep(())


class _PackWorker:
    """Works off one pack.

    Attributes:
        interrupted: a shutdown or a time limit has ended the run of one.
    """

    def __init__(self, pack: Run, actor: dramatiq.Actor[..., Any], call: Callable[[Run], object]) -> None:
        self.interrupted = False
        self._pack = pack
        self._actor = actor
        self._call = call
        self._ordered = registry.get(pack.handler).ordered

    def work_next(self) -> None:
        """Run the first delivery that is left, and report what became of it."""
        one = self._pack.first(ordered=self._ordered)
        suspect = one.deliveries[0] in self._pack.suspects
        confirmations.add(*(self._alone(one) if suspect else self._outcome(one)))
        del self._pack.deliveries[0], self._pack.events[0]

    def _alone(self, one: Run) -> list[Outcome]:
        """Run one that a worker may have died of, without others of its kind."""
        # What is done by now must not die with this process.
        confirmations.flush()
        try:
            if not crashes.claim_solitude():
                return Outcome.not_begun(one, "waits to run without other suspects", SUSPECT_DELAY)
            # It may have waited for another copy of its own message.
            return [] if _is_done(one) else self._outcome(one)
        finally:
            crashes.end_solitude()

    def _outcome(self, one: Run) -> list[Outcome]:
        try:
            with AtWork(one):
                self._call(one)
        except SkipMessage:
            return [] if one.left else Outcome.discarded(one, "skipped by the handler")
        except BaseException as error:  # as in Dramatiq's own worker, none is to end the thread
            self.interrupted = not isinstance(error, Exception)
            return self._failure(one, error)
        return Outcome.succeeded(one)

    def _failure(self, one: Run, error: BaseException) -> list[Outcome]:
        self._log(one, error)
        # The next one must not suffer from what the database did to this one's connection.
        close_old_connections()
        try:
            wait = retry_in(self._actor, one.retries, error)
        except Exception:
            self._actor.logger.exception("Whether to try again could not be decided, so it is.")
            wait = UNRULED_DELAY
        if wait is None:
            return Outcome.failed(one, describe(error))
        return Outcome.tried(one, describe(error), wait)

    def _log(self, one: Run, error: BaseException) -> None:
        """Say what Dramatiq says of a message that fails."""
        delivery, logger = one.deliveries[0], self._actor.logger
        if isinstance(error, self._actor.options.get("throws") or ()):
            logger.info("Delivery %d failed with expected exception %s.", delivery, type(error).__name__)
        elif not isinstance(error, dramatiq.Retry):
            logger.error("Delivery %d failed with unhandled exception.", delivery, exc_info=error)


def _is_done(one: Run) -> bool:
    rows = Delivery.objects.using(one.database).filter(pk__in=one.deliveries).only("status", "crashes")
    try:
        return any(not row.may_run(max_crashes=get_settings().max_crashes) for row in rows)
    except Error:
        logger.warning("could not look up delivery %d, so it runs", one.deliveries[0], exc_info=True)
        return False

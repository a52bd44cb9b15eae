"""The Dramatiq actor that runs a handler."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar, cast

import dramatiq
from dramatiq.middleware import SkipMessage
from dramatiq.middleware.time_limit import TimeLimitExceeded

from outbox.observability.telemetry import delivery_started
from outbox.registry import Handler, registry
from outbox.run import Run, current_run, describe
from outbox.worker.results import checked_result
from outbox.worker.transactional import discard_settled, settled_transaction

P = ParamSpec("P")
R = TypeVar("R")

_NO_TRANSACTION = nullcontext()


class OutboxActor(dramatiq.Actor[P, R]):
    """An actor that takes its function's arguments from the event, and measures the run."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function: in a worker with the event's arguments, elsewhere with the given arguments."""
        run = current_run.get()
        if run is None:
            return super().__call__(*args, **kwargs)
        # A handler may call itself or another handler as a plain function, which is no run.
        if run.started or run.handler != self.actor_name:
            return self._call_plainly(args, kwargs)
        handler = registry.get(self.actor_name)
        return cast(R, self._run(handler, run, args, kwargs))

    def _call_plainly(self, args: Any, kwargs: Any) -> R:
        token = current_run.set(None)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            current_run.reset(token)

    def _run(self, handler: Handler, run: Run, args: Any, kwargs: Any) -> Any:
        run.started = True
        if delivery_started.receivers:
            _announce(run)
        started = time.perf_counter()
        try:
            if run.observer is not None:
                run.observer.started()
            # A batch is split after its transaction has been rolled back.
            with settled_transaction(run) if handler.transactional else _NO_TRANSACTION:
                args, kwargs = self._arguments(handler, run, args, kwargs)
                return checked_result(handler.name, super().__call__(*args, **kwargs))
        except (Exception, TimeLimitExceeded) as error:
            if not self._splits(run, error):
                raise
            if run.trace is not None:
                run.error = error
            self.logger.exception(
                "A batch of %d events failed; its events run one by one.", len(run.deliveries)
            )
            run.split_error = describe(error)
            return None
        finally:
            run.duration_s = time.perf_counter() - started

    def _arguments(self, handler: Handler, run: Run, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if handler.arguments is None:
            return args, kwargs
        converted = handler.arguments(run)
        if handler.transactional:
            discard_settled(run)
        if run.discarded and not run.undecided:
            raise SkipMessage("; ".join(sorted(set(run.discarded.values()))))
        return converted

    def _splits(self, run: Run, error: BaseException) -> bool:
        """Return whether the events of a failed batch run one by one from now on, to find the bad event.

        The first retry runs the whole batch, unless the handler does not retry the error.
        """
        if len(run.deliveries) < 2 or isinstance(error, SkipMessage):
            return False
        final = isinstance(error, self.options.get("throws") or ()) or self.options.get("max_retries") == 0
        return final or run.retries > 0


def _announce(run: Run) -> None:
    for delivery, event in zip(run.deliveries, run.events, strict=True):
        delivery_started.send_robust(
            OutboxActor,
            database=run.database,
            delivery_id=delivery.id,
            event_id=str(event.id),
            handler=run.handler,
            topic=event.topic,
            key=event.key,
        )

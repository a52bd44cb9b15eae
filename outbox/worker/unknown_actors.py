"""Messages whose actor a worker does not know: they return to the table, and leave no dead letters."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any, NoReturn

from dramatiq import Broker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage
from dramatiq.worker import ConsumerThread

from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.operations.unknown_handlers import returned
from outbox.registry import registry
from outbox.run import Run

from .retries import options_as_json

logger = logging.getLogger(__name__)

# A consumer reads nothing else of an actor.
_UNKNOWN = SimpleNamespace(priority=0)


class Actors(dict[str, Any]):
    """The actors of a worker's broker, by present or former name; a task is imported by its name.

    Dramatiq's consumer rejects the message of an unknown actor without any hook that could prevent it, so a
    consumer finds a stand-in. A worker thread that gets such a message runs the hooks first.
    """

    def __missing__(self, name: str) -> Any:
        handler = registry.find(name)
        if handler is not None and handler.name in self:
            return self[handler.name]
        if isinstance(threading.current_thread(), ConsumerThread):
            return _UNKNOWN
        raise KeyError(name)


def accept_unknown_actors(broker: Broker) -> None:
    """Let the hooks of a worker get the messages of unknown actors."""
    if not isinstance(broker.actors, Actors):
        broker.actors = Actors(broker.actors)


def return_unknown(run: Run | None, message: MessageProxy) -> NoReturn:
    """Return the deliveries of a message to pending, or reject the message if the outbox did not send it.

    Raises:
        SkipMessage: always.
    """
    name = message.actor_name
    if run is None:
        logger.error("message %s has the undefined actor %r; it moves to the dead letters", message, name)
        message.fail()
        raise SkipMessage(f"undefined actor {name!r}")
    delay, options = returned(message.options)
    reason = f"a worker does not know the handler {name!r}; is it older than the relay?"
    confirmations.add(*Outcome.not_started(run, reason, delay, options_as_json(message, options)))
    raise SkipMessage(reason)

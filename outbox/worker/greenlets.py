"""Workers under gevent, whose greenlets share one thread of the system with the event loop of asyncio."""

from __future__ import annotations

import logging
import os
import sys

import dramatiq
from dramatiq.middleware import AsyncIO

logger = logging.getLogger(__name__)

ALLOW_ASYNC_UNSAFE = "DJANGO_ALLOW_ASYNC_UNSAFE"


def allow_database_beside_event_loop(broker: dramatiq.Broker) -> None:
    """Turn Django's async guard off in a worker under gevent that has the `AsyncIO` middleware.

    asyncio keeps the running loop for the thread of the operating system. The guard therefore takes each
    greenlet for async code: it would refuse the queries of all handlers and of the confirmations. The guard
    protects nothing there, as each greenlet has its own connections.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return
    if ALLOW_ASYNC_UNSAFE in os.environ or not any(isinstance(one, AsyncIO) for one in broker.middleware):
        return
    os.environ[ALLOW_ASYNC_UNSAFE] = "true"
    logger.info("gevent runs beside an event loop, so %s is set: Django allows queries", ALLOW_ASYNC_UNSAFE)

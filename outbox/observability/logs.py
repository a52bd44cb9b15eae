"""The log, written by receivers of the telemetry signals; each record has the fields of its signal.

A record also has the name of its signal as `signal`, for filters of structured logs.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

from . import telemetry

logger = logging.getLogger("outbox")

# Deliveries that succeed, start or are dispatched have no record: a busy process would log nothing else.
_LOGGED = {
    "batch_dispatched": (
        logging.DEBUG,
        "dispatched %(total)d deliveries of database %(database)r: %(counts)r",
    ),
    "delivery_refused": (
        logging.WARNING,
        "the broker refused delivery %(delivery_id)d to %(handler)s, which is retried: %(error)s",
    ),
    "deliveries_put_off": (
        logging.WARNING,
        "deliveries of database %(database)r are put off until the cause is gone: %(error)s",
    ),
    "delivery_failed": (logging.ERROR, "delivery %(delivery_id)d to %(handler)s has failed: %(last_line)s"),
    "deliveries_overdue": (
        logging.WARNING,
        "%(redelivered)d overdue deliveries of database %(database)r are redelivered; %(failed)d overdue "
        "deliveries failed",
    ),
    "broker_lost": (
        logging.ERROR,
        "a broker has lost messages: its marker is missing in %(broker)s; deliveries of database "
        "%(database)r are checked",
    ),
    "deliveries_lost": (
        logging.WARNING,
        "%(redelivered)d deliveries of database %(database)r, lost by %(broker)s, are redelivered",
    ),
    "send_refused": (
        logging.ERROR,
        "the send %(topic)r was refused, so its background receivers %(handlers)r get no event: %(error)s",
    ),
    "relay_started": (
        logging.INFO,
        "relay started for %(database)s: version %(version)s, pid %(pid)d, database %(server)s, "
        "broker %(brokers)s, queues %(queues)s, %(handler_count)d handlers, %(wakeup)s",
    ),
    "relay_stopped": (logging.INFO, "relay stopped for %(database)s"),
    "relay_in_trouble": (logging.WARNING, "relay of database %(database)r: %(state)s: %(error)s"),
    "relay_recovered": (
        logging.WARNING,
        "relay of database %(database)r: %(state)s again after %(duration_s).1f s",
    ),
    "worker_started": (logging.INFO, "worker started with %(threads)d threads for %(queues)s"),
    "worker_stopped": (logging.INFO, "worker stopped"),
    "worker_in_trouble": (
        logging.WARNING,
        "the worker cannot write its heartbeat to database %(database)r: %(state)s: %(error)s",
    ),
    "worker_recovered": (
        logging.WARNING,
        "the worker writes its heartbeat to database %(database)r again after %(duration_s).1f s",
    ),
}


class _Log:
    """Writes the records of one signal."""

    def __init__(self, name: str, level: int, template: str) -> None:
        self._name = name
        self._level = level
        self._template = template

    def __call__(self, sender: Any, *, signal: Signal, **fields: Any) -> None:
        if not logger.isEnabledFor(self._level):
            return
        # The row of the delivery has the whole traceback.
        last_line = (str(fields.get("error", "")).strip().splitlines() or [""])[-1]
        total = sum(fields.get("counts", {}).values())
        extra = {"signal": self._name, **fields}
        lists = {name: ", ".join(value) or "all" for name, value in fields.items() if isinstance(value, list)}
        texts = {**fields, **lists, "last_line": last_line, "total": total}
        logger.log(self._level, self._template, texts, extra=extra)


_receivers = {name: _Log(name, level, template) for name, (level, template) in _LOGGED.items()}


def connect() -> None:
    """Connect the receivers; a second call changes nothing."""
    for name, receiver in _receivers.items():
        signal: Signal = getattr(telemetry, name)
        signal.connect(receiver, weak=False, dispatch_uid=f"outbox.logs.{name}")

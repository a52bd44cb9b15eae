"""The log, written by receivers of the lifecycle signals: one place says what is worth a line."""

from __future__ import annotations

import logging
from typing import Any

from . import lifecycle

logger = logging.getLogger("outbox")


def connect() -> None:
    """Write the log from now on; calling it again changes nothing."""
    for signal, receiver in (
        (lifecycle.batch_dispatched, log_batch),
        (lifecycle.delivery_refused, log_refusal),
        (lifecycle.delivery_failed, log_failure),
        (lifecycle.deliveries_overdue, log_overdue),
        (lifecycle.relay_state_changed, log_state),
    ):
        signal.connect(receiver, dispatch_uid=f"outbox.logs.{receiver.__name__}")


def log_batch(sender: Any, *, database: str, counts: dict[str, int], **_kwargs: Any) -> None:
    """Log a dispatch, for those who look closely."""
    logger.debug("dispatched %d deliveries of database %r: %r", sum(counts.values()), database, dict(counts))


def log_refusal(sender: Any, *, delivery_id: int, handler: str, error: str, **_kwargs: Any) -> None:
    """Log a message that the broker refused."""
    logger.warning("delivery %d to %s was not sent and is tried again: %s", delivery_id, handler, error)


def log_failure(sender: Any, *, delivery_id: int, handler: str, error: str, **_kwargs: Any) -> None:
    """Log a delivery that waits for an operator; its traceback is on its row."""
    lines = error.strip().splitlines() or [""]
    logger.error("delivery %d to %s has failed: %s", delivery_id, handler, lines[-1])


def log_overdue(sender: Any, *, database: str, redelivered: int, failed: int, **_kwargs: Any) -> None:
    """Log that confirmations did not come."""
    logger.warning(
        "%d deliveries of database %r were never confirmed and go again; %d failed for it",
        redelivered,
        database,
        failed,
    )


def log_state(sender: Any, *, database: str, state: str, detail: str, **_kwargs: Any) -> None:
    """Log how a relay fares."""
    level = logging.INFO if state == "running" else logging.WARNING
    logger.log(level, "relay of database %r: %s%s", database, state, f": {detail}" if detail else "")

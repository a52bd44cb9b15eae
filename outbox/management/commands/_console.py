"""What run_relay shows in a terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from outbox.durations import format_duration
from outbox.observability.telemetry import batch_dispatched

LOGGERS = ("outbox", "relay")


def log_to_console() -> None:
    """Let the loggers of the relay write to the standard error, unless the project has configured them."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)


def show_batches(stdout: Any) -> None:
    """Write a line for each batch that the relays of this process dispatch."""

    def show(database: str, counts: Mapping[str, int], duration_s: float, **_fields: Any) -> None:
        handlers = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        total = sum(counts.values())
        deliveries = "delivery" if total == 1 else "deliveries"
        stdout.write(f"{database}: {total:,} {deliveries} in {format_duration(duration_s)}: {handlers}")
        stdout.flush()

    batch_dispatched.connect(show, weak=False, dispatch_uid="outbox.run_relay.show_batches")

"""The CPU time that `@monitor` adds to a call: `python -m tests.benchmarks.monitor`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

CALLS = 20_000
ROUNDS = 15


def main() -> None:
    """Print the CPU time of a bare and of a monitored call, and the difference."""
    from outbox.confirmations import confirmations
    from outbox.monitoring import monitor

    def receiver(sender: object, **kwargs: object) -> None:
        pass

    # Without the flushing thread: a flush every five seconds is not the cost of a call.
    confirmations.defers_counts = True
    monitored = monitor(receiver, name="tests.benchmarks.receiver")
    # In turn, so that both calls see the same noise.
    rounds = [(cpu_us_per_call(receiver), cpu_us_per_call(monitored)) for _ in range(ROUNDS)]
    bare, timed = (median(one) for one in zip(*rounds, strict=True))
    confirmations.drop_counts()
    print(
        f"@monitor: {timed:.2f} µs a call, {bare:.2f} µs bare, ratio {timed / bare:.1f}; "
        f"overhead {timed - bare:.2f} µs (median of {ROUNDS} rounds; promised: under 5 µs)"
    )


def cpu_us_per_call(function: Callable[..., object]) -> float:
    """Return the CPU time of one call in µs."""
    started = time.process_time()
    for _ in range(CALLS):
        function(sender=None, signal=None, instance=None)
    return (time.process_time() - started) / CALLS * 1e6


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    main()

"""Faults of relays and workers: each step does one thing, and waits until it is done."""

from __future__ import annotations

import signal

from tests.conftest import ROOT
from tests.faults.stage import CLOCK

from .run import MOMENT, Run, Step


def kill_relay(run: Run) -> None:
    """Kill the relay at a random moment."""
    run.for_a_while(MOMENT)
    run.stage.kill_relay()


def start_relay(run: Run) -> None:
    """Start a relay, as a process manager does."""
    run.stage.start_relay()


def kill_worker_at_work(run: Run) -> None:
    """Kill the worker while a run of each handler is stalled."""
    run.stage.stall_handlers()
    run.stage.kill_worker()
    run.stage.resume_handlers()


def start_worker(run: Run) -> None:
    """Start a worker, as a process manager does."""
    run.stage.start_worker()


def second_relay(run: Run) -> None:
    """Run another relay beside the first one."""
    run.stack.callback(run.stage.kill_relay, run.stage.start_relay())


def stop_relays_in_turn(run: Run) -> None:
    """Stop and continue each relay, with times in which both are stopped."""
    first, second = run.random.sample(run.stage.relays, 2)
    for relay, number in (
        (first, signal.SIGSTOP),
        (second, signal.SIGSTOP),
        (first, signal.SIGCONT),
        (first, signal.SIGSTOP),
        (second, signal.SIGCONT),
        (first, signal.SIGCONT),
    ):
        run.for_a_while(MOMENT)
        relay.send_signal(number)


def wrong_clock(hours: int) -> Step:
    """Run a relay with a wrong clock beside a relay with the right time."""

    def start(run: Run) -> None:
        offset_s = str(hours * 3600)
        relay = run.stage.start_relay(PYTHONPATH=f"{CLOCK}:{ROOT}", OUTBOX_TEST_CLOCK_OFFSET_S=offset_s)
        run.stack.callback(run.stage.kill_relay, relay)
        run.wait_for_effects(50)

    return start

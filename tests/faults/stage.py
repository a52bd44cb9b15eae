"""One broker, its database, and the processes between them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from example.services import EmbeddedPostgres, EmbeddedRedis
from tests.acceptance.switch import Switch
from tests.conftest import ROOT
from tests.support.processes import Process, wait_until

from . import effort
from .app import HANDLERS
from .ledger import Ledger
from .servers import RabbitmqNode

Broker = EmbeddedRedis | RabbitmqNode

CLOCK = ROOT / "tests" / "faults" / "clock"

# Characters of each process's output that are shown after a failure.
MAX_SHOWN = 60_000

OPTIONS = {
    "POLL_INTERVAL": effort.POLL_INTERVAL.total_seconds(),
    "CONFIRM_TIMEOUT": effort.CONFIRM_TIMEOUT.total_seconds(),
    "DISPATCH_TIMEOUT": effort.DISPATCH_TIMEOUT.total_seconds(),
    # A message that meets many faults is still not a bad message.
    "MAX_REDELIVERIES": 1000,
    "MAX_CRASHES": 1000,
}

BROKER_OPTIONS = {
    "redis": {
        "heartbeat_timeout": int(effort.HEARTBEAT_TIMEOUT.total_seconds() * 1000),
        "maintenance_chance": 1_000_000,
    },
    "rabbitmq": {},
}


class Stage:
    """A relay, a worker and a publisher that continue between scenarios, unless a scenario ends them."""

    def __init__(self, name: str, broker: Broker, postgres: EmbeddedPostgres, folder: Path) -> None:
        self.name = name
        self.broker = broker
        self.postgres = postgres
        self.database_url = f"{postgres.url.rpartition('/')[0]}/faults_{name}"
        self.ledger = Ledger(self.database_url)
        self.broker_switch = Switch(broker.url)
        self._folder = folder
        self._relays: list[Process] = []
        self._worker: Process | None = None
        self._publisher: Process | None = None

    # -- all processes

    def set_up(self) -> None:
        """Start the servers and processes that do not run."""
        self.postgres.start()
        self.broker.start()
        if not self._relays:
            self.broker_switch.on()
            self.start_relay()
        if self._worker is None:
            self.start_worker()
        if self._publisher is None:
            self._start_publisher()

    def show(self) -> None:
        """Write the connections and the output of the processes; abort the relays for their tracebacks."""
        sys.stderr.write(f"--- {self.ledger.activity()}\n")
        for relay in self._relays:
            relay.send_signal(signal.SIGABRT)
            relay.wait()
        for process in filter(None, [*self._relays, self._worker, self._publisher]):
            sys.stderr.write(f"--- {process} ---\n{process.output[-MAX_SHOWN:]}\n")

    def clear(self) -> None:
        """End all processes."""
        processes = [*self._relays, self._worker, self._publisher]
        self._relays, self._worker, self._publisher = [], None, None
        for process in filter(None, processes):
            process.kill()
        self.broker_switch.off()
        self.resume_handlers()
        (self._folder / "run").unlink(missing_ok=True)
        self.ledger.close()

    @contextmanager
    def publishing(self, run: str) -> Iterator[None]:
        """Make the publisher sell for a run while the block runs."""
        self._write("run", run)
        yield
        (self._folder / "run").unlink()
        self.publisher.wait_for_line(f"^done {run} ")

    @contextmanager
    def late_sale(self, run: str) -> Iterator[None]:
        """Keep a publishing transaction open while the block runs."""
        self._write("late", "")
        self.publisher.wait_for_line(f"^late {run} open")
        yield
        (self._folder / "late").unlink()
        self.publisher.wait_for_line(f"^late {run} committed")

    @property
    def publisher(self) -> Process:
        """The publisher."""
        assert self._publisher is not None
        return self._publisher

    @contextmanager
    def waiting_for_output(self, process: Process, words: str, deadline_s: float = 60) -> Iterator[None]:
        """Run the block, and wait until a process has newly written these words."""
        before = len(process.output)
        yield
        wait_until(lambda: words in process.output[before:], deadline_s, f"{process} to write {words!r}")

    # -- relays

    @property
    def relays(self) -> list[Process]:
        """The running relays."""
        return list(self._relays)

    def start_relay(self, **variables: str) -> Process:
        """Start a relay, and wait until it has started."""
        env = self._environment(OUTBOX_TEST_BROKER_URL=self.broker_switch.url, PGAPPNAME="relay") | variables
        relay = self._start(Process.manage("run_relay", env=env), "relay started")
        self._relays.append(relay)
        return relay

    def kill_relay(self, relay: Process | None = None) -> None:
        """Kill a relay, as the operating system does without free memory."""
        victim = relay or self._relays[0]
        self._relays.remove(victim)
        victim.kill()

    # -- the worker

    def start_worker(self) -> None:
        """Start a worker, and wait until it consumes messages."""
        worker = Process.manage(
            "rundramatiq", "--processes", "1", "--threads", "4", env=self._environment(PGAPPNAME="worker")
        )
        self._worker = self._start(worker, "is ready for action")

    def kill_worker(self) -> None:
        """Kill the worker and its running handlers."""
        assert self._worker is not None
        self._worker.kill()
        self._worker = None

    def stall_handlers(self) -> None:
        """Stall a run of each handler in the middle of its work."""
        stalled = [self._folder / f"stalled-{name}" for name in HANDLERS]
        for file in stalled:
            # A handler that started while the others were resumed may have left its file.
            file.unlink(missing_ok=True)
        self._write("stall", "")
        # The first delivery of an ordering key may have to wait until the death of a worker is known.
        wait_until(lambda: all(file.exists() for file in stalled), 60, "a run of each handler to stall")

    def resume_handlers(self) -> None:
        """Let stalled handlers continue."""
        for name in ("stall", *(f"stalled-{name}" for name in HANDLERS), "late"):
            (self._folder / name).unlink(missing_ok=True)

    def _start_publisher(self) -> None:
        # A publisher that waits for a lock gives up after a second, and continues with the next sale.
        env = self._environment(PGAPPNAME="publisher", PGOPTIONS="-c statement_timeout=1s")
        self._publisher = self._start(
            Process(sys.executable, "-m", "tests.faults.publisher", env=env), "^ready"
        )

    # -- starting and controlling processes

    def _start(self, process: Process, ready: str) -> Process:
        process.start().wait_for_line(ready, 60)
        return process

    def _write(self, name: str, text: str) -> None:
        # In one step, so that no process reads half a name.
        draft = self._folder / f"{name}.new"
        draft.write_text(text)
        draft.rename(self._folder / name)

    def options(self, **options: Any) -> str:
        """Return the OUTBOX setting of a process of this stage, as JSON."""
        return json.dumps(OPTIONS | {"CRASH_DIR": str(self._folder)} | options)

    def _environment(self, **variables: str) -> dict[str, str]:
        return environment(self.database_url) | {
            "OUTBOX_TEST_BROKER_URL": self.broker.url,
            "OUTBOX_TEST_BROKER_OPTIONS": json.dumps(BROKER_OPTIONS[self.name]),
            "OUTBOX_TEST_OPTIONS": self.options(),
            "OUTBOX_TEST_FOLDER": str(self._folder),
            "dramatiq_restart_delay": str(int(effort.RECONNECT.total_seconds() * 1000)),
            "dramatiq_worker_timeout": str(int(effort.IDLE_CHECK.total_seconds() * 1000)),
            **variables,
        }


def environment(database_url: str) -> dict[str, str]:
    """Return the environment of processes of the fault tests' project."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }

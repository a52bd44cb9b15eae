"""One broker with its database, and the processes between them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from example.services import EmbeddedPostgres, EmbeddedRedis
from tests.acceptance.switch import Switch
from tests.conftest import ROOT
from tests.faults import effort
from tests.faults.app import HANDLERS
from tests.faults.ledger import Ledger
from tests.faults.servers import RabbitmqNode
from tests.processes import Process, wait_until

Broker = EmbeddedRedis | RabbitmqNode

CLOCK = ROOT / "tests" / "faults" / "clock"

# Characters of each process's output, after a failure.
MAX_SHOWN = 60_000

OPTIONS = {
    "POLL_INTERVAL": effort.POLL_INTERVAL.total_seconds(),
    "CONFIRM_TIMEOUT": effort.CONFIRM_TIMEOUT.total_seconds(),
    "DISPATCH_TIMEOUT": effort.DISPATCH_TIMEOUT.total_seconds(),
    # A fault that hits a message this often is still not the message's.
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
    """A relay, a worker and a publisher that outlive scenarios, unless these end them."""

    def __init__(self, name: str, broker: Broker, postgres: EmbeddedPostgres, folder: Path) -> None:
        self.name = name
        self.broker = broker
        self.postgres = postgres
        self.database_url = f"{postgres.url.rpartition('/')[0]}/faults_{name}"
        self.ledger = Ledger(self.database_url)
        self.way = Switch(broker.url)
        self._folder = folder
        self._relays: list[Process] = []
        self._worker: Process | None = None
        self._publisher: Process | None = None

    # -- the cast

    def set_up(self) -> None:
        """Start what does not run."""
        self.postgres.start()
        self.broker.start()
        if not self._relays:
            self.way.on()
            self.start_relay()
        if self._worker is None:
            self.start_worker()
        if self._publisher is None:
            self._start_publisher()

    def show(self) -> None:
        """Write what connections do and processes wrote; the relays end with a traceback."""
        sys.stderr.write(f"--- {self.ledger.activity()}\n")
        for relay in self._relays:
            relay.send_signal(signal.SIGABRT)
            relay.wait()
        for process in filter(None, [*self._relays, self._worker, self._publisher]):
            sys.stderr.write(f"--- {process} ---\n{process.output[-MAX_SHOWN:]}\n")

    def clear(self) -> None:
        """End all processes."""
        cast = [*self._relays, self._worker, self._publisher]
        self._relays, self._worker, self._publisher = [], None, None
        for process in filter(None, cast):
            process.kill()
        self.way.off()
        self.let_go()
        (self._folder / "run").unlink(missing_ok=True)
        self.ledger.close()

    @contextmanager
    def publishing(self, run: str) -> Iterator[None]:
        """Let the publisher sell for a run, for the length of the block."""
        self._write("run", run)
        yield
        (self._folder / "run").unlink()
        self.publisher.wait_for_line(f"^done {run} ")

    @contextmanager
    def late_sale(self, run: str) -> Iterator[None]:
        """Keep a transaction open that has published, for the length of the block."""
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
    def hearing(self, process: Process, words: str, deadline_s: float = 60) -> Iterator[None]:
        """Run the block, and wait until a process has written words that it had not written before."""
        known = len(process.output)
        yield
        wait_until(lambda: words in process.output[known:], deadline_s, f"{process} to write {words!r}")

    # -- relays

    @property
    def relays(self) -> list[Process]:
        """The relays that run."""
        return list(self._relays)

    def start_relay(self, **variables: str) -> Process:
        """Start a relay, and wait until it is at work."""
        env = self._environment(OUTBOX_TEST_BROKER_URL=self.way.url, PGAPPNAME="relay") | variables
        relay = self._start(Process.manage("run_relay", env=env), "relay started")
        self._relays.append(relay)
        return relay

    def kill_relay(self, relay: Process | None = None) -> None:
        """Kill a relay, as the system does that runs out of memory."""
        victim = relay or self._relays[0]
        self._relays.remove(victim)
        victim.kill()

    # -- the worker

    def start_worker(self) -> None:
        """Start a worker, and wait until it takes messages."""
        worker = Process.manage(
            "rundramatiq", "--processes", "1", "--threads", "4", env=self._environment(PGAPPNAME="worker")
        )
        self._worker = self._start(worker, "is ready for action")

    def kill_worker(self) -> None:
        """Kill the worker with whatever it runs."""
        assert self._worker is not None
        self._worker.kill()
        self._worker = None

    def hold_handlers(self) -> None:
        """Let all handlers stay in the middle of their work, and wait until they do."""
        held = [self._folder / f"held-{name}" for name in HANDLERS]
        for file in held:
            # Of a handler that went to work as the others were let go.
            file.unlink(missing_ok=True)
        self._write("hold", "")
        # The first one of a lane may have to wait until it is known that the worker before has died.
        wait_until(lambda: all(file.exists() for file in held), 60, "all handlers to be at work")

    def let_go(self) -> None:
        """Let handlers work on."""
        for name in ("hold", *(f"held-{name}" for name in HANDLERS), "late"):
            (self._folder / name).unlink(missing_ok=True)

    def _start_publisher(self) -> None:
        # A publisher that has to wait for a lock gives up after a while, and goes on with the next sale.
        env = self._environment(PGAPPNAME="publisher", PGOPTIONS="-c statement_timeout=1s")
        self._publisher = self._start(
            Process(sys.executable, "-m", "tests.faults.publisher", env=env), "^ready"
        )

    # -- what they are told

    def _start(self, process: Process, ready: str) -> Process:
        process.start().wait_for_line(ready, 60)
        return process

    def _write(self, name: str, text: str) -> None:
        # In one step, so that nobody reads half a name.
        draft = self._folder / f"{name}.new"
        draft.write_text(text)
        draft.rename(self._folder / name)

    def _environment(self, **variables: str) -> dict[str, str]:
        return environment(self.database_url) | {
            "OUTBOX_TEST_BROKER_URL": self.broker.url,
            "OUTBOX_TEST_BROKER_OPTIONS": json.dumps(BROKER_OPTIONS[self.name]),
            "OUTBOX_TEST_OPTIONS": json.dumps(OPTIONS | {"CRASH_DIR": str(self._folder)}),
            "OUTBOX_TEST_FOLDER": str(self._folder),
            "dramatiq_restart_delay": str(int(effort.RECONNECT.total_seconds() * 1000)),
            "dramatiq_worker_timeout": str(int(effort.LOOK.total_seconds() * 1000)),
            **variables,
        }


def environment(database_url: str) -> dict[str, str]:
    """Return the environment of processes of the faults' project."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }

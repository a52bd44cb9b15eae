"""Run the demo and clean up after it."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import django
from django.db import connections

from example.services import ServiceError

from .children import Children
from .errors import DemoError
from .options import Options
from .screen import Screen
from .surroundings import surroundings

PASSED, FAILED, INTERRUPTED = 0, 1, 130
# Ctrl-C, `kill`, and a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(options: Options) -> int:
    """Run the demo and return its exit status."""
    screen = Screen()
    logs = Path(tempfile.mkdtemp(prefix="outbox-demo-"))
    status = FAILED
    try:
        with _orderly_end():
            status = _run(options, screen, logs)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (DemoError, ServiceError) as error:
        screen.write(str(error), style="bold red")
    if status == FAILED:
        screen.write(f"The logs are kept in {logs}.")
    else:
        shutil.rmtree(logs, ignore_errors=True)
    return status


def _run(options: Options, screen: Screen, logs: Path) -> int:
    with ExitStack() as stack:
        try:
            return _stages(options, screen, logs, stack)
        finally:
            screen.write("Stopping …")
            # A second Ctrl-C must not interrupt the clean-up.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def _stages(options: Options, screen: Screen, logs: Path, stack: ExitStack) -> int:
    screen.write(f"Logs are in {logs}.")
    screen.write("Starting PostgreSQL and the broker …")
    identity = f"outbox_demo_{secrets.token_hex(4)}"
    os.environ.update(stack.enter_context(surroundings(identity)))
    screen.write(f"The database, and all names in the broker, are {identity}.")
    children = stack.enter_context(Children(logs=logs))
    django.setup()
    # Models cannot be imported without settings.
    from .job import Job

    # The database cannot be dropped while this process is connected to it.
    stack.callback(connections.close_all)
    try:
        job = Job(options=options, screen=screen, children=children)
        passed = job.run()
        if not options.exit:
            job.serve()
    except Exception:
        screen.write(children.tails())
        raise
    if not passed:
        screen.write(children.tails())
    return PASSED if passed else FAILED


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Turn signals that end the demo into KeyboardInterrupt, so that the processes stop in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

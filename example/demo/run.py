"""The demo from beginning to end, whatever happens in between."""

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

from example.demo.children import Children
from example.demo.errors import DemoError
from example.demo.options import Options
from example.demo.screen import Screen
from example.demo.surroundings import surroundings
from example.services import ServiceError

PASSED, FAILED, INTERRUPTED = 0, 1, 130
# What ends the demo from outside: Ctrl-C, `kill`, and a terminal that is closed.
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
        screen.say(str(error), style="bold red")
    if status == FAILED:
        screen.say(f"The logs stay in {logs}.")
    else:
        shutil.rmtree(logs, ignore_errors=True)
    return status


def _run(options: Options, screen: Screen, logs: Path) -> int:
    with ExitStack() as stack:
        try:
            return _stages(options, screen, logs, stack)
        finally:
            screen.say("Stopping …")
            # From here on everything is being stopped, and a second Ctrl-C must not interrupt that half-way.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def _stages(options: Options, screen: Screen, logs: Path, stack: ExitStack) -> int:
    screen.say(f"Logs are in {logs}.")
    screen.say("Starting PostgreSQL and the broker …")
    identity = f"outbox_demo_{secrets.token_hex(4)}"
    os.environ.update(stack.enter_context(surroundings(identity)))
    screen.say(f"The database, and all names in the broker, are {identity}.")
    children = stack.enter_context(Children(logs=logs))
    django.setup()
    # Not before the environment is known: models cannot be imported without settings.
    from example.demo.job import Job

    # The database cannot be dropped politely while this process is connected to it.
    stack.callback(connections.close_all)
    try:
        job = Job(options=options, screen=screen, children=children)
        passed = job.run()
        if not options.exit:
            job.serve()
    except Exception:
        screen.say(children.tails())
        raise
    if not passed:
        screen.say(children.tails())
    return PASSED if passed else FAILED


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Turn every signal that ends the demo into KeyboardInterrupt, so that everything is stopped in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

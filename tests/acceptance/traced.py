"""The processes of a project with OpenTelemetry or Sentry, and the lines that they write."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import Process, wait_until

from .stage import relay, worker

Lines = list[dict[str, Any]]
_ADDRESS = r"http://127\.0\.0\.1:\d+/"


class Site:
    """A web process, a relay and a worker."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._web = Process.manage("runserver", "--noreload", "127.0.0.1:0", env=env)
        self._working = [relay(env), worker(env)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the three processes; end relay and worker so that they write all that they have."""
        with ExitStack() as stack:
            stack.enter_context(self._web)
            for process in self._working:
                stack.enter_context(process)
            yield
            for process in reversed(self._working):
                process.terminate()
            for process in self._working:
                process.wait()

    def publish(self, topic: str) -> str:
        """Publish an event in a request; return the id of the event."""
        address = self._web.wait_for_line(_ADDRESS).group()
        with urllib.request.urlopen(f"{address}publish/{topic}/", timeout=30) as response:
            return str(response.read().decode())


def lines(path: Path) -> Lines:
    """Return the lines so far; another process may be writing the last one."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def wait_for(path: Path, wanted: Callable[[Lines], Any], what: str) -> Any:
    """Wait until `wanted` finds something in the lines; return it."""
    return wait_until(lambda: wanted(lines(path)), 60, what)

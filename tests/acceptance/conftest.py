"""The fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dj_database_url
import pytest
from django.core.management import call_command
from django.db import connection

from example.services import EmbeddedPostgres

from .folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return the folder to which the handler `filed` writes."""
    return Folder(tmp_path)


@pytest.fixture
def process_env(process_env: dict[str, str], folder: Folder) -> dict[str, str]:
    """Return the environment of child processes, with this test's folder."""
    return process_env | {"OUTBOX_TEST_FOLDER": str(folder.path)}


@pytest.fixture
def redis_env(process_env: dict[str, str], redis_url: str) -> dict[str, str]:
    """Return the environment of processes that use Redis."""
    return process_env | {"OUTBOX_TEST_BROKER_URL": redis_url}


@pytest.fixture(scope="session")
def _own_postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def own_postgres(
    _own_postgres: EmbeddedPostgres, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedPostgres]:
    """Point `default` to a server that the test may kill, with empty tables, and yield the server.

    Request it before the fixtures of an environment, so that child processes use the same server.
    """
    with default_at(_own_postgres, monkeypatch):
        yield _own_postgres
        _own_postgres.start()


@contextmanager
def default_at(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point `default` to a server of the test, and leave empty tables."""
    own = dj_database_url.parse(server.url)
    connection.close()
    for part in ("HOST", "PORT", "USER", "PASSWORD", "NAME"):
        monkeypatch.setitem(connection.settings_dict, part, own.get(part, ""))
    call_command("migrate", verbosity=0)
    yield
    # The settings of the session end with it.
    connection.close()
    call_command("flush", interactive=False, verbosity=0)
    connection.close()

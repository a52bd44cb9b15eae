"""Two packages from PyPI whose signal handlers enqueue tasks: Wagtail, and its search, modelsearch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.conftest import require
from tests.support.processes import Process, wait_until

from .stage import relay, worker

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

SEARCH = "modelsearch.tasks.insert_or_update_object_task"
REFERENCES = "wagtail.tasks.update_reference_index_task"

ADD_PAGES = """
from django.db import transaction
from wagtail.models import Page

root = Page.objects.get(depth=1)
with transaction.atomic():
    root.add_child(instance=Page(title="rolled back", slug="rolled-back"))
    transaction.set_rollback(True)
root.refresh_from_db()
with transaction.atomic():
    root.add_child(instance=Page(title="Committed in a transaction", slug="committed"))
root.refresh_from_db()
root.add_child(instance=Page(title="Committed without one", slug="autocommit"))
"""

SEARCH_PAGES = """
from wagtail.models import Page
print("FOUND", sorted(page.slug for page in Page.objects.search("committed")))
"""


@pytest.fixture
def site_env(process_env: dict[str, str], redis_url: str, postgres_url: str) -> Iterator[dict[str, str]]:
    """Return the environment of a site with its own database, since its packages have many tables."""
    require("wagtail" if find_spec("wagtail") else None, "no Wagtail: install the dependency group test")
    name = f"{os.environ['OUTBOX_TEST_DATABASE_NAME']}_site"
    url = process_env["DATABASE_URL"].rpartition("/")[0] + f"/{name}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        try:
            env = process_env | {
                "DATABASE_URL": url,
                "DJANGO_SETTINGS_MODULE": "tests.thirdparty.settings",
                "OUTBOX_TEST_BROKER_URL": redis_url,
            }
            manage(env, "migrate", "--verbosity", "0")
            yield env
        finally:
            server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def manage(env: dict[str, str], *command: str) -> str:
    """Run a command to its end; return its output."""
    with Process.manage(*command, env=env) as process:
        assert process.wait(120) == 0, process.output
        return process.output


def rows(env: dict[str, str], query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query in the database of the site."""
    with psycopg.connect(env["DATABASE_URL"]) as database:
        return database.execute(SQL(query)).fetchall()  # type: ignore[arg-type]


def test_signal_handlers_of_wagtail_and_modelsearch_enqueue_tasks(site_env: dict[str, str]) -> None:
    manage(site_env, "shell", "-c", ADD_PAGES)
    enqueued = dict(rows(site_env, "SELECT handler, count(*) FROM outbox_delivery GROUP BY handler"))
    # Without the page that was rolled back.
    assert enqueued == {SEARCH: 2, REFERENCES: 2}

    with relay(site_env), worker(site_env):
        states = "SELECT DISTINCT state FROM outbox_delivery"
        wait_until(lambda: rows(site_env, states) == [("succeeded",)], 60, "all tasks to succeed")
    attempts = rows(site_env, "SELECT exception_class, finished_at IS NOT NULL FROM outbox_taskattempt")
    assert attempts == [("", True)] * 4
    assert "FOUND ['autocommit', 'committed']" in manage(site_env, "shell", "-c", SEARCH_PAGES)

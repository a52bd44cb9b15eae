"""This release delivers rows of the previous release, after the migrations in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import dramatiq
import pytest
from django.core.management import call_command
from django.db import ProgrammingError, connection
from django.db.migrations.loader import MigrationLoader

from outbox.models import Event
from tests.support.data_flow import flush, relay_all

from . import recordings
from .handlers import declared
from .running import outcomes, work_all

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def states_since_the_previous_release() -> list[str]:
    """Return the migration states in which the previous release may write rows: all but the last."""
    names = sorted(name for app, name in MigrationLoader(None).disk_migrations if app == "outbox")
    recorded = names.index(recordings.load("state")["migration"])
    return names[recorded:-1] or names[-1:]


@pytest.fixture(autouse=True)
def upgraded() -> Iterator[None]:
    """Apply all migrations after the test."""
    with declared():
        dramatiq.get_broker().flush_all()
        yield
        flush()
    dramatiq.get_broker().flush_all()
    call_command("migrate", "outbox", verbosity=0)


def publish_as_the_previous_release() -> None:
    """Execute the statements of its publishers, one by one."""
    with connection.cursor() as cursor:
        for statement in recordings.load_sql("rows"):
            cursor.execute(statement)


@pytest.mark.parametrize("state", states_since_the_previous_release())
def test_rows_of_the_previous_release_are_delivered_after_the_migration(state: str) -> None:
    call_command("migrate", "outbox", state, verbosity=0)
    publish_as_the_previous_release()
    call_command("migrate", "outbox", verbosity=0)
    work_all()
    assert outcomes() == recordings.load("outcomes")


@pytest.mark.parametrize("state", states_since_the_previous_release())
def test_a_relay_that_is_upgraded_before_the_migration_loses_nothing(state: str) -> None:
    call_command("migrate", "outbox", state, verbosity=0)
    publish_as_the_previous_release()
    # The relay may work without the additions of the migration. If it cannot, it must change nothing.
    with suppress(ProgrammingError):
        relay_all()
    call_command("migrate", "outbox", verbosity=0)
    work_all()
    assert outcomes() == recordings.load("outcomes")


def test_publishers_of_the_previous_release_write_into_the_tables_of_this_one() -> None:
    publish_as_the_previous_release()
    work_all()
    assert outcomes() == recordings.load("outcomes")
    assert set(Event.objects.values_list("version", flat=True)) == {1}


def test_every_statement_of_the_previous_release_fits_the_tables_of_this_one() -> None:
    refused = []
    with connection.cursor() as cursor:
        for statement in recordings.load_sql("statements"):
            try:
                # EXPLAIN checks tables, columns and types, and does not execute the statement.
                cursor.execute(f"EXPLAIN {statement}")
            except Exception as problem:
                refused.append((statement, str(problem)))
    assert refused == []

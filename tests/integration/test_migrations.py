"""The migrations are complete and reversible, and set the storage parameters."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection

from outbox.migrations import __name__ as migrations_package


def storage_parameters() -> dict[str, set[str]]:
    """Return the storage parameters of the outbox's tables that differ from the server's defaults."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'outbox\\_%%' AND relkind = 'r'"
        )
        return {table: set(parameters or ()) for table, parameters in cursor.fetchall()}


@pytest.mark.django_db
def test_the_models_have_no_change_without_a_migration(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("makemigrations", "outbox", check=True, dry_run=True)
    assert "No changes detected" in capsys.readouterr().out


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_the_tables_have_the_storage_parameters_of_the_migration() -> None:
    assert {table: found for table, found in storage_parameters().items() if found} == expected_parameters()


@pytest.mark.django_db(transaction=True)
def test_all_migrations_are_reversible() -> None:
    call_command("migrate", "outbox", "zero", verbosity=0)
    assert not {name for name in connection.introspection.table_names() if name.startswith("outbox_")}
    call_command("migrate", "outbox", verbosity=0)
    assert "outbox_delivery" in connection.introspection.table_names()


def expected_parameters() -> dict[str, set[str]]:
    """Return the parameters of the migration in the format of `pg_class`."""
    from importlib import import_module

    parameters = import_module(f"{migrations_package}.0001_initial").STORAGE_PARAMETERS
    return {
        table: {f"{name}={value}" for name, value in values.items()} for table, values in parameters.items()
    }

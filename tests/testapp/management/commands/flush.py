"""Empty the tables after a test with real commits.

Django's command truncates all tables and creates all permissions again, which takes longer than most tests.
"""

from __future__ import annotations

from typing import Any

from django.core.management.color import no_style
from django.core.management.commands.flush import Command as DjangoFlush
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

# Their rows are the same for all tests.
KEPT = {"auth_permission", "django_content_type", "django_migrations"}


class Command(DjangoFlush):
    """Truncate the tables that have rows."""

    def handle(self, **options: Any) -> None:
        """Truncate the tables of one database, without a question."""
        connection = connections[options["database"]]
        if tables := _tables_with_rows(connection):
            statements = connection.ops.sql_flush(no_style(), tables, allow_cascade=True)
            connection.ops.execute_sql_flush(statements)


def _tables_with_rows(connection: BaseDatabaseWrapper) -> list[str]:
    existing = connection.introspection.django_table_names(only_existing=True, include_views=False)
    tables = [name for name in existing if name not in KEPT]
    quoted = map(connection.ops.quote_name, tables)
    columns = ", ".join(f"EXISTS (SELECT 1 FROM {name})" for name in quoted)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns}")
        return [name for name, has_rows in zip(tables, cursor.fetchone(), strict=True) if has_rows]

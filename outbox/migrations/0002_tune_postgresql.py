"""Storage parameters, on PostgreSQL only."""

from typing import Any

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Every delivery is updated two or three times within seconds, and its dead versions lie exactly where the
# claim looks: vacuum by a fixed number of dead rows, not by a share of a table that keeps a week of history.
# The updates can never be HOT (each changes a column of a partial index), so a lower fillfactor would only
# make the table larger. Statistics rows are different: an update of theirs touches no index, and room on the
# page keeps it HOT. Events are never updated; vacuum them for the sake of their visibility map.
PARAMETERS: dict[str, dict[str, Any]] = {
    "outbox_delivery": {
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 10000,
        "autovacuum_analyze_scale_factor": 0.02,
        "autovacuum_vacuum_cost_delay": 0,
    },
    "outbox_event": {
        "autovacuum_vacuum_insert_scale_factor": 0.05,
        "autovacuum_analyze_scale_factor": 0.05,
    },
    "outbox_handlerstats": {"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0.05},
    "outbox_relayheartbeat": {"fillfactor": 50},
}


def tune(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Set the parameters."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for table, parameters in PARAMETERS.items():
        assignments = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        schema_editor.execute(f"ALTER TABLE {table} SET ({assignments})")


def untune(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Go back to the server's defaults."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for table, parameters in PARAMETERS.items():
        schema_editor.execute(f"ALTER TABLE {table} RESET ({', '.join(parameters)})")


class Migration(migrations.Migration):
    """Tune autovacuum and fillfactor."""

    dependencies = [("outbox", "0001_initial")]

    operations = [migrations.RunPython(tune, untune)]

"""Indexes of the first ones of lanes and the events of batches, as they are due, and of lanes at work."""

from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState


class AddIndexBesidePublishers(migrations.AddIndex):
    """Add an index while others write, where the database can."""

    # Else PostgreSQL would have no publisher write until it has read the whole table.
    atomic = False

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Add it."""
        if not _is_postgresql(schema_editor):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            schema_editor.add_index(model, self.index, concurrently=True)


def _is_postgresql(schema_editor: BaseDatabaseSchemaEditor) -> bool:
    return schema_editor.connection.vendor == "postgresql"


class Migration(migrations.Migration):
    """Add three partial indexes."""

    atomic = False

    dependencies = [("outbox", "0003_event_version")]

    operations = [
        AddIndexBesidePublishers(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("held", ""), ("status", "pending"), models.Q(("key", ""), _negated=True)),
                fields=["available_at", "id"],
                name="outbox_delivery_due_lanes",
            ),
        ),
        AddIndexBesidePublishers(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("held", "batch"), ("status", "pending")),
                fields=["handler", "available_at", "id"],
                name="outbox_delivery_batch",
            ),
        ),
        AddIndexBesidePublishers(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("status", "dispatched"), models.Q(("key", ""), _negated=True)),
                fields=["handler", "key"],
                name="outbox_delivery_lane_sent",
            ),
        ),
    ]

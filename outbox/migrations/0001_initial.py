"""The tables, and on PostgreSQL their storage parameters."""

from typing import Any

import django.db.models.deletion
import django.db.models.functions.datetime
from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

import outbox.models.handler_stats
import outbox.uuid7

# Each delivery is updated two or three times within seconds, and the claim scans past its dead versions. So
# autovacuum starts after a fixed number of dead rows, not after a share of a table that keeps a week of history.
# These updates can never be HOT: each changes a column of a partial index. But an update that finds room on
# its page logs half as much, so inserts leave some. More room than this costs more disk than it saves in the log.
# An update of statistics changes no index, and free room on the page keeps it HOT.
# Events are never updated; vacuum keeps their visibility map current.
STORAGE_PARAMETERS: dict[str, dict[str, Any]] = {
    "outbox_delivery": {
        "fillfactor": 85,
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
    "outbox_processheartbeat": {"fillfactor": 50},
}


def set_storage_parameters(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Set the storage parameters on PostgreSQL."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for table, parameters in STORAGE_PARAMETERS.items():
        assignments = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        schema_editor.execute(f"ALTER TABLE {table} SET ({assignments})")


class Migration(migrations.Migration):
    """Create the tables."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="BacklogSample",
            fields=[
                (
                    "minute",
                    models.DateTimeField(primary_key=True, serialize=False, verbose_name="minute"),
                ),
                ("published", models.PositiveIntegerField(db_default=0, verbose_name="published")),
                ("due", models.PositiveIntegerField(db_default=0, verbose_name="due")),
                ("waiting", models.PositiveIntegerField(db_default=0, verbose_name="waiting")),
                ("unconfirmed", models.PositiveIntegerField(db_default=0, verbose_name="unconfirmed")),
                ("failed", models.PositiveIntegerField(db_default=0, verbose_name="failed")),
                (
                    "oldest_s",
                    models.FloatField(db_default=0.0, verbose_name="age of the oldest delivery (s)"),
                ),
            ],
            options={
                "verbose_name": "backlog sample",
                "verbose_name_plural": " Overview",
            },
        ),
        migrations.CreateModel(
            name="PausedHandler",
            fields=[
                (
                    "handler",
                    models.CharField(
                        max_length=255, primary_key=True, serialize=False, verbose_name="handler"
                    ),
                ),
                ("reason", models.TextField(blank=True, db_default="", verbose_name="reason")),
                (
                    "paused_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="paused at"
                    ),
                ),
            ],
            options={
                "verbose_name": "paused handler",
                "verbose_name_plural": "paused handlers",
            },
        ),
        migrations.CreateModel(
            name="BrokerMarker",
            fields=[
                (
                    "broker",
                    models.CharField(
                        max_length=255, primary_key=True, serialize=False, verbose_name="broker"
                    ),
                ),
                ("marker", models.CharField(max_length=64, verbose_name="marker")),
                ("generation", models.PositiveIntegerField(db_default=0, verbose_name="generation")),
                ("lost_at", models.DateTimeField(blank=True, null=True, verbose_name="lost at")),
                ("repaired", models.BooleanField(db_default=True, verbose_name="repaired")),
            ],
            options={
                "verbose_name": "broker marker",
                "verbose_name_plural": "broker markers",
            },
        ),
        migrations.CreateModel(
            name="ProcessHeartbeat",
            fields=[
                (
                    "id",
                    models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="id"),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("relay", "relay"), ("worker", "worker")],
                        db_default="relay",
                        max_length=6,
                        verbose_name="kind",
                    ),
                ),
                ("host", models.CharField(max_length=255, verbose_name="host")),
                ("pid", models.PositiveIntegerField(verbose_name="process id")),
                (
                    "version",
                    models.CharField(blank=True, db_default="", max_length=40, verbose_name="version"),
                ),
                ("queues", models.TextField(blank=True, db_default="", verbose_name="queues")),
                ("threads", models.PositiveSmallIntegerField(db_default=1, verbose_name="threads")),
                ("state", models.CharField(db_default="running", max_length=20, verbose_name="state")),
                (
                    "state_since",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="state since"
                    ),
                ),
                ("detail", models.TextField(blank=True, db_default="", verbose_name="detail")),
                ("problems", models.JSONField(blank=True, default=list, verbose_name="problems")),
                (
                    "started_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="started at"
                    ),
                ),
                (
                    "seen_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="seen at"
                    ),
                ),
                (
                    "last_dispatch_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="last dispatch at"),
                ),
                ("dispatched", models.PositiveBigIntegerField(db_default=0, verbose_name="dispatched")),
            ],
            options={
                "verbose_name": "process",
                "verbose_name_plural": "processes",
            },
        ),
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=outbox.uuid7.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                        verbose_name="id",
                    ),
                ),
                ("topic", models.CharField(max_length=200, verbose_name="topic")),
                ("key", models.CharField(blank=True, db_default="", max_length=255, verbose_name="key")),
                (
                    "dedup_key",
                    models.CharField(blank=True, max_length=255, null=True, verbose_name="dedup key"),
                ),
                ("payload", models.JSONField(verbose_name="payload")),
                ("headers", models.JSONField(default=dict, verbose_name="headers")),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        editable=False,
                        verbose_name="created at",
                    ),
                ),
                (
                    "version",
                    models.PositiveSmallIntegerField(db_default=1, editable=False, verbose_name="version"),
                ),
            ],
            options={
                "verbose_name": "event",
                "verbose_name_plural": "events",
                "indexes": [
                    models.Index(
                        condition=models.Q(("key", ""), _negated=True),
                        fields=["key", "id"],
                        name="outbox_event_key",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("dedup_key__isnull", False)),
                        fields=("topic", "dedup_key"),
                        name="outbox_event_dedup",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="HandlerStats",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, verbose_name="id")),
                ("handler", models.CharField(max_length=255, verbose_name="handler")),
                ("bucket", models.DateTimeField(verbose_name="minute")),
                ("dispatched", models.PositiveIntegerField(db_default=0, verbose_name="dispatched")),
                ("succeeded", models.PositiveIntegerField(db_default=0, verbose_name="succeeded")),
                ("retried", models.PositiveIntegerField(db_default=0, verbose_name="retried")),
                ("failed", models.PositiveIntegerField(db_default=0, verbose_name="failed")),
                ("duration_total_s", models.FloatField(db_default=0.0, verbose_name="total duration (s)")),
                ("duration_max_s", models.FloatField(db_default=0.0, verbose_name="maximum duration (s)")),
                (
                    "histogram",
                    outbox.models.handler_stats.HistogramField(default=list, verbose_name="histogram"),
                ),
            ],
            options={
                "verbose_name": "handler statistics",
                "verbose_name_plural": "handler statistics",
                "constraints": [
                    models.UniqueConstraint(fields=("bucket", "handler"), name="outbox_handlerstats_minute")
                ],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, verbose_name="id")),
                (
                    "event",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="outbox.event",
                        verbose_name="event",
                    ),
                ),
                (
                    "available_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="available at"
                    ),
                ),
                ("handler", models.CharField(max_length=255, verbose_name="handler")),
                ("queue", models.CharField(max_length=255, verbose_name="queue")),
                (
                    "key",
                    models.CharField(blank=True, db_default="", max_length=255, verbose_name="ordering key"),
                ),
                (
                    "waits_for",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("batch", "for its batch"),
                            ("key", "for an earlier delivery with its ordering key"),
                            ("resume", "for its handler to be resumed"),
                        ],
                        db_default="",
                        max_length=6,
                        verbose_name="waits for",
                    ),
                ),
                ("error", models.TextField(blank=True, db_default="", verbose_name="error")),
                (
                    "message_options",
                    models.JSONField(blank=True, null=True, verbose_name="message options"),
                ),
                ("due_since", models.DateTimeField(blank=True, null=True, verbose_name="due since")),
                ("redeliveries", models.PositiveSmallIntegerField(db_default=0, verbose_name="redeliveries")),
                ("resends", models.PositiveSmallIntegerField(db_default=0, verbose_name="resends")),
                ("refusals", models.PositiveSmallIntegerField(db_default=0, verbose_name="refusals")),
                ("crashes", models.PositiveSmallIntegerField(db_default=0, verbose_name="crashes")),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires at")),
                ("replayed", models.BooleanField(db_default=False, verbose_name="replayed")),
                (
                    "owner",
                    models.BigIntegerField(blank=True, editable=False, null=True, verbose_name="owner"),
                ),
                ("attempts", models.PositiveSmallIntegerField(db_default=0, verbose_name="attempts")),
                ("dispatched_at", models.DateTimeField(blank=True, null=True, verbose_name="dispatched at")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "pending"),
                            ("dispatched", "dispatched"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("discarded", "discarded"),
                        ],
                        db_default="pending",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("confirm_by", models.DateTimeField(blank=True, null=True, verbose_name="confirm by")),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
            ],
            options={
                "verbose_name": "delivery",
                "verbose_name_plural": "deliveries",
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "pending"), ("waits_for", "")),
                        fields=["available_at", "id"],
                        name="outbox_delivery_due",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("state", "pending"), ("waits_for", ""), models.Q(("key", ""), _negated=True)
                        ),
                        fields=["available_at", "id"],
                        name="outbox_delivery_due_ordered",
                    ),
                    models.Index(
                        condition=models.Q(("state", "pending"), ("waits_for", "batch")),
                        fields=["handler", "available_at", "id"],
                        name="outbox_delivery_batch",
                    ),
                    models.Index(
                        condition=models.Q(("state", "pending"), models.Q(("waits_for", ""), _negated=True)),
                        fields=["handler", "id"],
                        name="outbox_delivery_waiting",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("due_since__isnull", False), ("state", "pending"), ("waits_for", "")
                        ),
                        fields=["handler", "due_since"],
                        name="outbox_delivery_put_off",
                    ),
                    models.Index(
                        condition=models.Q(("state", "dispatched")),
                        fields=["confirm_by"],
                        name="outbox_delivery_unconfirmed",
                    ),
                    models.Index(
                        condition=models.Q(("owner__isnull", False), ("state", "dispatched")),
                        fields=["owner"],
                        name="outbox_delivery_owner",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("state__in", ["pending", "dispatched", "failed"]),
                            models.Q(("key", ""), _negated=True),
                        ),
                        fields=["handler", "key", "id"],
                        name="outbox_delivery_key",
                    ),
                    models.Index(
                        condition=models.Q(("state", "dispatched"), models.Q(("key", ""), _negated=True)),
                        fields=["handler", "key"],
                        name="outbox_delivery_key_sent",
                    ),
                    models.Index(
                        condition=models.Q(("state", "failed")),
                        fields=["handler", "id"],
                        name="outbox_delivery_failed",
                    ),
                    models.Index(
                        condition=models.Q(("state", "failed"), models.Q(("key", ""), _negated=True)),
                        fields=["handler", "id"],
                        name="outbox_delivery_failed_keys",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("crashes__gt", 0), ("state__in", ["pending", "dispatched", "failed"])
                        ),
                        fields=["id"],
                        name="outbox_delivery_crashed",
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("state__in", ["pending", "dispatched", "succeeded", "failed", "discarded"])
                        ),
                        name="outbox_delivery_state",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="TaskAttempt",
            fields=[
                (
                    "id",
                    models.BigAutoField(primary_key=True, serialize=False, verbose_name="id"),
                ),
                ("event_id", models.UUIDField(db_index=True, editable=False, verbose_name="event")),
                ("worker_id", models.CharField(max_length=255, verbose_name="worker")),
                (
                    "started_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="started at"
                    ),
                ),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
                ("return_value", models.JSONField(blank=True, null=True, verbose_name="return value")),
                (
                    "exception_class",
                    models.CharField(
                        blank=True, db_default="", max_length=255, verbose_name="exception class"
                    ),
                ),
                ("traceback", models.TextField(blank=True, db_default="", verbose_name="traceback")),
            ],
            options={
                "verbose_name": "task attempt",
                "verbose_name_plural": "task attempts",
            },
        ),
        migrations.RunPython(set_storage_parameters, migrations.RunPython.noop),
        migrations.CreateModel(
            name="OperatorJob",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, verbose_name="id")),
                (
                    "verb",
                    models.CharField(
                        choices=[
                            ("retry", "retry"),
                            ("resend", "resend"),
                            ("discard", "discard"),
                            ("replay", "replay"),
                        ],
                        max_length=10,
                        verbose_name="action",
                    ),
                ),
                (
                    "handler",
                    models.CharField(blank=True, db_default="", max_length=255, verbose_name="handler"),
                ),
                ("topic", models.CharField(blank=True, db_default="", max_length=255, verbose_name="topic")),
                ("reason", models.TextField(blank=True, db_default="", verbose_name="reason")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "waits for a relay"),
                            ("running", "running"),
                            ("done", "done"),
                            ("stopped", "stopped"),
                        ],
                        db_default="waiting",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("after_id", models.BigIntegerField(db_default=0, verbose_name="done up to delivery")),
                ("last_id", models.BigIntegerField(verbose_name="last delivery")),
                ("changed", models.PositiveBigIntegerField(db_default=0, verbose_name="changed deliveries")),
                ("key", models.CharField(blank=True, db_default="", max_length=255, verbose_name="key")),
                ("since", models.DateTimeField(blank=True, null=True, verbose_name="published since")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="published before")),
                ("after_event", models.UUIDField(blank=True, null=True, verbose_name="done up to event")),
                (
                    "rate",
                    models.PositiveIntegerField(blank=True, null=True, verbose_name="deliveries per second"),
                ),
                ("requested_by", models.CharField(max_length=255, verbose_name="requested by")),
                (
                    "requested_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="requested at"
                    ),
                ),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
            ],
            options={
                "verbose_name": "operator job",
                "verbose_name_plural": "operator jobs",
                "permissions": [
                    ("retry_deliveries", "Can retry all failed deliveries that match a filter"),
                    ("resend_deliveries", "Can resend all unconfirmed deliveries that match a filter"),
                    ("discard_deliveries", "Can discard all failed deliveries that match a filter"),
                    ("replay_deliveries", "Can replay all events that match a filter"),
                ],
                "indexes": [
                    models.Index(
                        condition=models.Q(("state__in", ["waiting", "running"])),
                        fields=["id"],
                        name="outbox_operatorjob_open",
                    )
                ],
            },
        ),
    ]

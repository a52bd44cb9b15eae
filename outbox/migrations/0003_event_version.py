"""The version of an event's form; `docs/reference/upgrading.md` says what it is for."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Add a column that publishers of before need not write; on PostgreSQL no row is rewritten for it."""

    dependencies = [("outbox", "0002_tune_postgresql")]

    operations = [
        migrations.AddField(
            model_name="event",
            name="version",
            field=models.PositiveSmallIntegerField(db_default=1, editable=False, verbose_name="version"),
        ),
    ]

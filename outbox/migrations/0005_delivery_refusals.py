"""How often the broker has refused a delivery."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Add a column that older code need not write; on PostgreSQL no row is rewritten for it."""

    dependencies = [("outbox", "0004_indexes_of_what_is_due")]

    operations = [
        migrations.AddField(
            model_name="delivery",
            name="refusals",
            field=models.PositiveSmallIntegerField(db_default=0, verbose_name="refusals"),
        ),
    ]

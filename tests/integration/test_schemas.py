"""Two aliases on two schemas of one PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection, connections, transaction

from outbox.models import Delivery
from tests.support.factories import make_delivery

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True, databases=["default", "second"]),
]

SCHEMA = "other_schema"


@pytest.fixture
def other_alias() -> Iterator[str]:
    """Return an alias whose tables are in another schema of the default database."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE SCHEMA {SCHEMA};"
            f"CREATE TABLE {SCHEMA}.outbox_delivery (LIKE outbox_delivery INCLUDING ALL)"
        )
    second, other = connections["second"], connections["default"].copy("second")
    other.settings_dict["OPTIONS"] = {"options": f"-c search_path={SCHEMA}"}
    connections["second"] = other
    yield "second"
    connections["second"] = second
    other.close()
    with connection.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def test_deliveries_with_one_id_in_two_schemas_run_at_the_same_time(other_alias: str) -> None:
    delivery = make_delivery(state="dispatched")
    Delivery.objects.using(other_alias).bulk_create([delivery])
    with transaction.atomic(), transaction.atomic(using=other_alias):
        assert Delivery.objects.settle([delivery.ref]) == {delivery.ref}
        assert Delivery.objects.using(other_alias).settle([delivery.ref]) == {delivery.ref}

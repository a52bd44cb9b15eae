"""Claims as prepared statements: their plans, and connections that have none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import ProgrammingError, connection, transaction

from relay.claim import Claim
from tests.conftest import database_url
from tests.support.data_flow import publish
from tests.support.history import DUE, fill, unvacuumed
from tests.support.pooler import TransactionPooler
from tests.support.query_plans import TABLES, explained, nodes, pages
from tests.support.statements import counted

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def claiming(limit: int = DUE, **options: Any) -> Claim:
    return Claim(database="default", limit=limit, **options)


def claimed(claim: Claim, **options: Any) -> int:
    with transaction.atomic():
        return len(claim.claim_due(**options).rows)


def prepared() -> list[str]:
    """Return the names of this connection's prepared claims."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements")
        return [name for (name,) in cursor.fetchall() if name.startswith("outbox_delivery_claim_")]


@contextmanager
def reconnected(**settings: Any) -> Iterator[None]:
    """Give the test another connection to its database."""
    before = {name: connection.settings_dict[name] for name in settings}
    connection.close()
    connection.settings_dict.update(settings)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


# ---------------------------------------------------------------- plans


@pytest.mark.slow
@pytest.mark.parametrize("skip_ordered", [False, True])
def test_the_plan_of_empty_tables_reads_few_pages_of_full_tables(skip_ordered: bool) -> None:
    claim = claiming()
    with connection.cursor() as cursor, unvacuumed(cursor):
        assert claimed(claim, skip_ordered=skip_ordered) == 0
        fill(cursor)
        plans = [plan_of(claim, skip_ordered)]
        for table in TABLES:
            cursor.execute(f"ANALYZE {table}")
        plans.append(plan_of(claim, skip_ordered))
    for plan in plans:
        indexes = {node.get("Index Name") for node in nodes(plan)}
        assert {"outbox_delivery_due", "outbox_delivery_pkey", "outbox_event_pkey"} <= indexes
        assert not [node for node in nodes(plan) if node["Node Type"] == "Seq Scan"], plan
        assert pages(plan) <= 40 * DUE, plan


def plan_of(claim: Claim, skip_ordered: bool) -> dict[str, Any]:
    """Claim, roll back, and return the plan of the claim."""
    # The history is older than the position.
    claim.cursors.reset()
    with transaction.atomic(), explained() as plans:
        assert len(claim.claim_due(skip_ordered=skip_ordered).rows) == DUE
        transaction.set_rollback(True)
    (plan,) = plans
    return plan


# ---------------------------------------------------------------- statements


def test_one_plan_serves_all_claims() -> None:
    claim = claiming()
    for _claim in range(3):
        publish("flaky.x")
        assert claimed(claim) == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT generic_plans, custom_plans FROM pg_prepared_statements ORDER BY prepare_time")
        assert cursor.fetchall()[-1] == (3, 0)


def test_a_claim_takes_one_round_trip_besides_its_transaction() -> None:
    claim = claiming()
    claimed(claim)
    with counted() as statements:
        claimed(claim)
    begin, execute, commit = statements.texts()
    assert (begin, commit) == ("BEGIN", "COMMIT")
    assert re.search(r"; EXECUTE outbox_delivery_claim_\d+ \('[-+:.\w]+', \d+\)$", execute)


def test_the_settings_of_the_planner_end_with_the_transaction() -> None:
    claimed(claiming())
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('plan_cache_mode'), current_setting('enable_seqscan')")
        assert cursor.fetchone() == ("auto", "on")


def test_a_new_connection_prepares_anew() -> None:
    claim = claiming()
    assert claimed(claim) == 0
    connection.close()
    publish("flaky.x")
    assert claimed(claim) == 1
    assert len(prepared()) == 1


def test_server_side_binding_makes_no_difference() -> None:
    with reconnected(OPTIONS={**connection.settings_dict["OPTIONS"], "server_side_binding": True}):
        publish("flaky.x")
        assert claimed(claiming(queues=("another",))) == 0
        claim = claiming()
        assert (claimed(claim), claimed(claim)) == (1, 0)
        assert len(prepared()) == 2


# ---------------------------------------------------------------- without prepared statements


def test_a_claim_behind_a_pooler_is_not_prepared() -> None:
    options = {**connection.settings_dict["OPTIONS"], "sslmode": "disable", "gssencmode": "disable"}
    publish("flaky.x")
    with (
        TransactionPooler(database_url()) as pooler,
        reconnected(HOST="127.0.0.1", PORT=str(pooler.port), OPTIONS=options),
    ):
        claim = claiming()
        assert (claimed(claim), claimed(claim)) == (1, 0)
        assert prepared() == []


def test_a_claim_whose_statement_is_lost_fails_once() -> None:
    """As behind a pooler that passes on the process ids of the server."""
    claim = claiming()
    publish("flaky.x")
    with transaction.atomic():
        assert len(claim.claim_due().rows) == 1
        transaction.set_rollback(True)
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    with pytest.raises(ProgrammingError):
        claimed(claim)
    assert claimed(claim) == 1
    connection.close()
    assert claimed(claim) == 0
    assert prepared() == []

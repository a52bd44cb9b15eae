"""Transactional handlers whose transaction cannot commit although the function returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

import outbox
from outbox.errors import TransactionRolledBack
from outbox.models import Delivery, Event, HandlerStats
from outbox.registry import registry
from outbox.testing import deliver
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, states_of, worker
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

with_commits = pytest.mark.django_db(transaction=True)
in_a_test_case = pytest.mark.django_db

Action = Callable[[], None]


def swallow_an_integrity_error() -> None:
    effect = Effect.objects.create(handler="first")
    with suppress(IntegrityError):
        Effect(pk=effect.pk, handler="second").save(force_insert=True)


def swallow_an_error_of_raw_sql() -> None:
    with suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM absent_table")


def swallow_an_error_of_a_block_without_savepoint() -> None:
    with suppress(ValueError), transaction.atomic(savepoint=False):
        raise ValueError


def mark_for_rollback() -> None:
    transaction.set_rollback(True)


def close_the_connection() -> None:
    connection.close()


def roll_back_by_raw_sql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")


def leave_a_block_open() -> None:
    transaction.atomic().__enter__()


CAUSES = [
    pytest.param(swallow_an_integrity_error, "IntegrityError: ", id="integrity error"),
    pytest.param(
        swallow_an_error_of_a_block_without_savepoint, r"set_rollback\(True\)", id="block without savepoint"
    ),
    pytest.param(mark_for_rollback, r"set_rollback\(True\)", id="set_rollback"),
]
CAUSES_OF_POSTGRES = [
    pytest.param(
        swallow_an_error_of_raw_sql,
        'relation "absent_table" does not exist',
        id="raw SQL",
        marks=pytest.mark.postgres,
    ),
]
CAUSES_WITH_COMMITS = [
    pytest.param(close_the_connection, "closed its connection", id="closed connection"),
    pytest.param(roll_back_by_raw_sql, "ended it with COMMIT or ROLLBACK", id="ROLLBACK"),
    pytest.param(leave_a_block_open, "is still open", id="open block"),
]


@pytest.fixture
def actions() -> Iterator[list[Action]]:
    """Return a list of functions, which a transactional handler calls after its effect, one per run."""
    actions: list[Action] = []

    @outbox.handler(
        "silent.one", transactional=True, queue_name=QUEUE, name="silent", min_backoff=5, max_backoff=5
    )
    def silent(event: Any) -> None:
        Effect.objects.create(handler="silent", event_id=event.id)
        if actions:
            actions.pop(0)()

    @outbox.handler(
        "silent.many",
        transactional=True,
        batch_size=2,
        batch_wait=timedelta(),
        queue_name=QUEUE,
        name="silents",
        min_backoff=5,
        max_backoff=5,
    )
    def silents(events: list[Any]) -> None:
        for event in events:
            silent.fn(event)

    yield actions
    registry.remove("silent")
    registry.remove("silents")
    transaction.get_connection().needs_rollback = False


@pytest.fixture
def broker() -> Iterator[None]:
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


def effects() -> int:
    return Effect.objects.filter(handler="silent").count()


@with_commits
@pytest.mark.parametrize(("action", "cause"), CAUSES + CAUSES_OF_POSTGRES + CAUSES_WITH_COMMITS)
def test_a_run_that_was_rolled_back_silently_fails_with_the_cause_and_is_retried(
    broker: None, actions: list[Action], action: Action, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    actions.append(action)
    event = publish("silent.one")
    relay_all()
    with worker():
        assert finish_with_retries(event) == {"silent": "succeeded"}
    flush()
    assert effects() == 1
    counts = HandlerStats.objects.merged()["silent"]
    assert (counts.retried, counts.succeeded) == (1, 1)
    assert re.search(f"TransactionRolledBack: the transaction of handler 'silent' .*{cause}", caplog.text)


@with_commits
def test_a_batch_that_was_rolled_back_silently_is_retried(
    broker: None, actions: list[Action], caplog: pytest.LogCaptureFixture
) -> None:
    actions += [lambda: None, swallow_an_integrity_error]
    with transaction.atomic():
        events = [outbox.publish("silent.many") for _ in range(2)]
    relay_all()
    with worker():
        for event in events:
            assert finish_with_retries(event) == {"silents": "succeeded"}
    assert effects() == 2
    assert "TransactionRolledBack: the transaction of handler 'silents'" in caplog.text


@with_commits
def test_an_error_of_an_earlier_transaction_is_not_named_as_the_cause(actions: list[Action]) -> None:
    # Django never resets it.
    connection.rollback_exc = IntegrityError("of an earlier transaction")
    actions.append(mark_for_rollback)
    publish("silent.one")
    with pytest.raises(TransactionRolledBack) as caught:
        deliver()
    assert "of an earlier transaction" not in str(caught.value)


@with_commits
def test_an_error_inside_a_savepoint_does_not_fail_the_run(broker: None, actions: list[Action]) -> None:
    def fail_in_a_savepoint() -> None:
        with suppress(ValueError), transaction.atomic():
            swallow_an_integrity_error()
            raise ValueError

    actions.append(fail_in_a_savepoint)
    event = publish("silent.one")
    relay_all()
    with worker():
        assert finish(event) == {"silent": "succeeded"}
    assert event.deliveries.get().error == ""
    assert effects() == 1


@in_a_test_case
@pytest.mark.parametrize(("action", "cause"), CAUSES + CAUSES_OF_POSTGRES)
@pytest.mark.parametrize("topic", ["silent.one", "silent.many"])
def test_deliver_raises_the_error_of_a_silent_rollback_within_the_transaction_of_a_test(
    actions: list[Action], action: Action, cause: str, topic: str
) -> None:
    actions += [action, action]
    with transaction.atomic():
        event = outbox.publish(topic)
    with pytest.raises(TransactionRolledBack, match=cause):
        deliver()
    assert set(states_of(event).values()) == {"failed"}
    assert effects() == 0


@with_commits
def test_deliver_raises_the_error_of_a_closed_connection(actions: list[Action]) -> None:
    actions.append(close_the_connection)
    publish("silent.one")
    with pytest.raises(TransactionRolledBack, match="closed its connection"):
        deliver()
    assert set(Delivery.objects.values_list("state", flat=True)) == {"failed"}
    assert Event.objects.exists()

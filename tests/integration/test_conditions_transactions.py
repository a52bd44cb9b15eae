"""`only_when_field_changed` keeps its old values through commits, rollbacks and savepoints."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.db.models.signals import post_save
from django.test import TestCase

from outbox.conditions import only_when_field_changed

pytestmark = pytest.mark.django_db(transaction=True)


class Parcel(models.Model):
    status = models.CharField(max_length=20, default="new")

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return self.status


CHANGED = only_when_field_changed("status", model=Parcel)


class Undone(Exception):
    """Rolls a block back."""


@pytest.fixture
def received() -> Iterator[list[Any]]:
    found: list[Any] = []

    @CHANGED
    def receiver(changes: dict[str, Any], **kwargs: Any) -> None:
        found.append(changes["status"])

    post_save.connect(receiver, sender=Parcel)
    yield found
    post_save.disconnect(receiver, sender=Parcel)


def make(received: list[Any]) -> Parcel:
    parcel = Parcel.objects.get(pk=Parcel.objects.create().pk)
    received.clear()
    return parcel


def save(parcel: Parcel, status: str) -> None:
    parcel.status = status
    parcel.save()


@contextmanager
def rolled_back() -> Iterator[None]:
    with pytest.raises(Undone), transaction.atomic():
        yield
        raise Undone


@pytest.mark.parametrize(
    ("error", "robust"), [(ValueError, False), (KeyboardInterrupt, False), (KeyboardInterrupt, True)]
)
def test_a_commit_counts_even_if_an_earlier_hook_raises(
    received: list[Any], error: type[BaseException], robust: bool
) -> None:
    def fail() -> None:
        raise error

    parcel = make(received)
    with pytest.raises(error), transaction.atomic():
        transaction.on_commit(fail, robust=robust)
        with transaction.atomic():
            save(parcel, "paid")
        with rolled_back():
            save(parcel, "lost")
    save(parcel, "new")
    assert received == [("new", "paid"), ("paid", "lost"), ("paid", "new")]


def test_a_rollback_is_noticed_while_the_error_of_an_earlier_hook_is_kept(received: list[Any]) -> None:
    def fail() -> None:
        raise Undone

    parcel = make(received)
    with pytest.raises(Undone) as kept, transaction.atomic():
        transaction.on_commit(fail)
        save(parcel, "paid")
    with rolled_back():
        save(parcel, "lost")
    save(parcel, "lost")
    assert received == [("new", "paid"), ("paid", "lost"), ("paid", "lost")]
    assert kept.value.__traceback__ is not None


def test_many_savepoints_leave_one_hook_and_few_layers(received: list[Any]) -> None:
    parcel = make(received)
    with transaction.atomic():
        for number in range(50):
            with transaction.atomic(), transaction.atomic(savepoint=False), transaction.atomic():
                save(parcel, str(number))
        assert len(connection.run_on_commit) == 1
        assert len(parcel._state.layers) <= 3
        with rolled_back():
            save(parcel, "lost")
        save(parcel, "lost")
    assert received[-3:] == [("48", "49"), ("49", "lost"), ("49", "lost")]


def test_many_instances_leave_one_hook(received: list[Any]) -> None:
    with transaction.atomic():
        for number in range(50):
            with transaction.atomic():
                Parcel.objects.create(status=str(number))
        assert len(connection.run_on_commit) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_old_value_is_the_row_after_any_order_of_savepoints(received: list[Any], seed: int) -> None:
    choose = random.Random(seed)
    parcel = make(received)
    numbers = iter(range(1000))

    def row() -> str:
        return Parcel.objects.values_list("status", flat=True).get()

    def step(depth: int) -> None:
        for _ in range(choose.randint(1, 4)):
            if depth == 5 or choose.random() < 0.5:
                before = row()
                received.clear()
                save(parcel, f"v{next(numbers)}")
                assert received == [(before, row())]
            else:
                with rolled_back() if choose.random() < 0.4 else transaction.atomic():
                    step(depth + 1)

    for _ in range(5):
        step(0)


@pytest.mark.django_db
def test_capturing_hooks_in_a_test_case_gets_only_later_hooks(received: list[Any]) -> None:
    ran: list[str] = []
    transaction.on_commit(lambda: ran.append("before"))
    with TestCase.captureOnCommitCallbacks(execute=True):
        Parcel.objects.create()
        transaction.on_commit(lambda: ran.append("within"))
    assert ran == ["within"]

"""Conditions on receivers of real signals."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from functools import wraps
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings

from outbox.conditions import (
    Condition,
    only_for_models,
    only_in_environment,
    only_when_field_changed,
    signal_condition,
    split_condition,
)
from outbox.errors import RegistrationError
from tests.testapp.models import Customer, Order, Product, ProductBase

YES = signal_condition(lambda: True)
NO = signal_condition(lambda: False)


@pytest.fixture
def signal() -> Signal:
    return Signal()


class WithExtra(Condition):
    """Allow every send, and add arguments."""

    def __init__(self, **added: Any) -> None:
        self.added = added

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return True

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        return self.added


def test_a_receiver_runs_only_if_its_condition_allows_the_send(signal: Signal) -> None:
    received: list[int] = []

    @signal_condition(lambda size: size > 2)
    def receiver(size: int, **kwargs: Any) -> None:
        received.append(size)

    signal.connect(receiver)
    for size in (1, 3):
        signal.send("me", size=size)
    assert received == [3]


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        (YES & YES, True),
        (YES & NO, False),
        (YES | NO, True),
        (NO | NO, False),
        (~NO, True),
        (~(YES & NO) & YES, True),
    ],
)
def test_conditions_combine(condition: Condition, allowed: bool) -> None:
    assert condition.allows("me") is allowed


def test_the_extra_arguments_of_several_conditions_are_merged() -> None:
    both = WithExtra(changes={"a": (1, 2)}, x=1) & WithExtra(changes={"b": (3, 4)})
    assert both.extra("me") == {"changes": {"a": (1, 2), "b": (3, 4)}, "x": 1}

    @WithExtra(changes={"a": (1, 2)})
    @WithExtra(changes={"b": (3, 4)})
    def stacked(changes: Any, **kwargs: Any) -> Any:
        return changes

    assert stacked(sender="me") == {"a": (1, 2), "b": (3, 4)}


def test_a_decorated_function_keeps_its_name_and_docstring() -> None:
    def receiver(sender: Any, **kwargs: Any) -> None:
        """Handle the signal."""

    wrapped = YES(receiver)
    assert (wrapped.__name__, wrapped.__doc__, inspect.unwrap(wrapped)) == (
        "receiver",
        "Handle the signal.",
        receiver,
    )


def test_a_receiver_gets_only_the_extra_arguments_that_it_takes() -> None:
    @WithExtra(changes={}, x=1)
    def receiver(sender: Any, x: int) -> int:
        return x

    assert receiver("me") == 1


def test_split_condition_removes_condition_decorators() -> None:
    def receiver(**kwargs: Any) -> None: ...

    assert split_condition(receiver) == (receiver, None)
    function, condition = split_condition(YES(NO(receiver)))
    assert function is receiver
    assert condition is not None
    assert not condition.allows("me")


def test_split_condition_keeps_other_decorators() -> None:
    def receiver(**kwargs: Any) -> None: ...

    conditional = YES(receiver)

    @wraps(conditional)
    def outer(**kwargs: Any) -> None: ...

    assert split_condition(outer) == (outer, None)


# ---------------------------------------------------------------- kinds of receivers


class Listener:
    def __init__(self) -> None:
        self.received: list[Any] = []

    @signal_condition(lambda size: size > 2)
    def decorated(self, sender: Any, size: int, **kwargs: Any) -> None:
        self.received.append(size)

    def plain(self, sender: Any, size: int, **kwargs: Any) -> None:
        self.received.append(size)


def test_a_decorated_method_is_connected_weakly(signal: Signal) -> None:
    listener = Listener()
    signal.connect(listener.decorated)
    gc.collect()
    for size in (1, 3):
        signal.send("me", size=size)
    assert listener.received == [3]


def test_a_bound_method_is_disconnected_with_its_instance(signal: Signal) -> None:
    listener = Listener()
    signal.connect(signal_condition(lambda size: size > 2)(listener.plain))
    gc.collect()
    for size in (1, 3):
        signal.send("me", size=size)
    assert listener.received == [3]

    gone = weakref.ref(listener)
    del listener
    gc.collect()
    assert gone() is None
    assert signal.send("me", size=3) == []


def test_a_local_receiver_without_references_is_disconnected(signal: Signal) -> None:
    signal.connect(YES(lambda **kwargs: None))
    gc.collect()
    assert signal.send("me") == []


def test_an_async_receiver_is_awaited(signal: Signal) -> None:
    received: list[int] = []

    @WithExtra(extra=1)
    @signal_condition(lambda size: size > 2)
    async def receiver(size: int, **kwargs: Any) -> str:
        await asyncio.sleep(0)
        received.append(size + kwargs["extra"])
        return "done"

    signal.connect(receiver)
    assert signal.send("me", size=1) == [(receiver, None)]
    assert asyncio.run(signal.asend("me", size=3)) == [(receiver, "done")]
    assert received == [4]


def test_an_async_condition_is_refused() -> None:
    async def decide(**kwargs: Any) -> bool:
        return True

    with pytest.raises(RegistrationError, match="async"):
        signal_condition(decide)


# ---------------------------------------------------------------- the conditions


def test_only_for_models_allows_classes_and_labels_and_their_subclasses() -> None:
    condition = only_for_models(ProductBase, "testapp.Order")
    allowed = [model for model in (ProductBase, Product, Order, Customer) if condition.allows(model)]
    assert allowed == [ProductBase, Product, Order]
    assert not condition.allows(None)
    assert not condition.allows("testapp.Order")


@pytest.mark.parametrize("models", [(), ("order",), (int,), (3,)])
def test_only_for_models_refuses_other_values_than_models(models: Any) -> None:
    with pytest.raises(RegistrationError, match="'app\\.Model'"):
        only_for_models(*models)


def test_the_environment_is_read_at_each_send() -> None:
    condition = only_in_environment("production", "staging")
    for name, allowed in (("production", True), ("staging", True), ("test", False)):
        with override_settings(ENVIRONMENT=name):
            assert condition.allows("me") is allowed
    with pytest.raises(ImproperlyConfigured, match="ENVIRONMENT"):
        condition.allows("me")


def test_conditions_without_names_are_refused() -> None:
    for build in (only_in_environment, only_when_field_changed):
        with pytest.raises(RegistrationError, match="names no"):
            build()


@pytest.mark.django_db
def test_a_condition_decides_about_a_model_signal() -> None:
    received: list[Any] = []

    @only_for_models(Customer)
    def receiver(instance: Any, **kwargs: Any) -> None:
        received.append(instance)

    post_save.connect(receiver)
    try:
        Order.objects.create()
        customer = Customer.objects.create(name="c")
    finally:
        post_save.disconnect(receiver)
    assert received == [customer]


def test_a_send_without_an_instance_changes_no_field() -> None:
    condition = only_when_field_changed("name", model=Customer)
    assert not condition.allows(Customer)
    assert condition.extra(Customer) == {"changes": {}}

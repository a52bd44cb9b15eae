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


class Loud(Condition):
    """Give the receiver what it finds."""

    def __init__(self, **found: Any) -> None:
        self.found = found

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return True

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        return self.found


def test_a_receiver_runs_only_when_allowed(signal: Signal) -> None:
    heard: list[int] = []

    @signal_condition(lambda size: size > 2)
    def receiver(size: int, **kwargs: Any) -> None:
        heard.append(size)

    signal.connect(receiver)
    for size in (1, 3):
        signal.send("me", size=size)
    assert heard == [3]


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


def test_what_several_conditions_found_is_united() -> None:
    both = Loud(changes={"a": (1, 2)}, x=1) & Loud(changes={"b": (3, 4)})
    assert both.extra("me") == {"changes": {"a": (1, 2), "b": (3, 4)}, "x": 1}

    @Loud(changes={"a": (1, 2)})
    @Loud(changes={"b": (3, 4)})
    def stacked(changes: Any, **kwargs: Any) -> Any:
        return changes

    assert stacked(sender="me") == {"a": (1, 2), "b": (3, 4)}


def test_the_function_stays_reachable_and_keeps_its_name() -> None:
    def receiver(sender: Any, **kwargs: Any) -> None:
        """Do it."""

    wrapped = YES(receiver)
    assert (wrapped.__name__, wrapped.__doc__, inspect.unwrap(wrapped)) == ("receiver", "Do it.", receiver)


def test_a_receiver_gets_only_what_it_takes() -> None:
    @Loud(changes={}, x=1)
    def receiver(sender: Any, x: int) -> int:
        return x

    assert receiver("me") == 1


def test_split_condition_takes_decorators_off() -> None:
    def receiver(**kwargs: Any) -> None: ...

    assert split_condition(receiver) == (receiver, None)
    function, condition = split_condition(YES(NO(receiver)))
    assert function is receiver
    assert condition is not None
    assert not condition.allows("me")


def test_split_condition_leaves_a_decorator_of_someone_else_on() -> None:
    def receiver(**kwargs: Any) -> None: ...

    conditional = YES(receiver)

    @wraps(conditional)
    def outer(**kwargs: Any) -> None: ...

    assert split_condition(outer) == (outer, None)


# ---------------------------------------------------------------- kinds of receivers


class Listener:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    @signal_condition(lambda size: size > 2)
    def decorated(self, sender: Any, size: int, **kwargs: Any) -> None:
        self.heard.append(size)

    def plain(self, sender: Any, size: int, **kwargs: Any) -> None:
        self.heard.append(size)


def test_a_decorated_method_is_connected_weakly(signal: Signal) -> None:
    listener = Listener()
    signal.connect(listener.decorated)
    gc.collect()
    for size in (1, 3):
        signal.send("me", size=size)
    assert listener.heard == [3]


def test_a_bound_method_lives_and_dies_with_its_instance(signal: Signal) -> None:
    listener = Listener()
    signal.connect(signal_condition(lambda size: size > 2)(listener.plain))
    gc.collect()
    for size in (1, 3):
        signal.send("me", size=size)
    assert listener.heard == [3]

    gone = weakref.ref(listener)
    del listener
    gc.collect()
    assert gone() is None
    assert signal.send("me", size=3) == []


def test_a_local_receiver_that_nothing_holds_is_forgotten(signal: Signal) -> None:
    signal.connect(YES(lambda **kwargs: None))
    gc.collect()
    assert signal.send("me") == []


def test_an_async_receiver_is_awaited(signal: Signal) -> None:
    heard: list[int] = []

    @Loud(extra=1)
    @signal_condition(lambda size: size > 2)
    async def receiver(size: int, **kwargs: Any) -> str:
        await asyncio.sleep(0)
        heard.append(size + kwargs["extra"])
        return "done"

    signal.connect(receiver)
    assert signal.send("me", size=1) == [(receiver, None)]
    assert asyncio.run(signal.asend("me", size=3)) == [(receiver, "done")]
    assert heard == [4]


def test_an_async_condition_is_refused() -> None:
    async def decide(**kwargs: Any) -> bool:
        return True

    with pytest.raises(RegistrationError, match="async"):
        signal_condition(decide)


# ---------------------------------------------------------------- the conditions


def test_only_for_models_takes_classes_and_labels_with_what_derives_from_them() -> None:
    condition = only_for_models(ProductBase, "testapp.Order")
    allowed = [model for model in (ProductBase, Product, Order, Customer) if condition.allows(model)]
    assert allowed == [ProductBase, Product, Order]
    assert not condition.allows(None)
    assert not condition.allows("testapp.Order")


@pytest.mark.parametrize("models", [(), ("order",), (int,), (3,)])
def test_only_for_models_refuses_what_is_no_model(models: Any) -> None:
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
def test_a_condition_on_a_model_signal() -> None:
    heard: list[Any] = []

    @only_for_models(Customer)
    def receiver(instance: Any, **kwargs: Any) -> None:
        heard.append(instance)

    post_save.connect(receiver)
    try:
        Order.objects.create()
        customer = Customer.objects.create(name="c")
    finally:
        post_save.disconnect(receiver)
    assert heard == [customer]


def test_a_send_without_an_instance_changes_no_field() -> None:
    condition = only_when_field_changed("name", model=Customer)
    assert not condition.allows(Customer)
    assert condition.extra(Customer) == {"changes": {}}

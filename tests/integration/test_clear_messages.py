"""Faults of a set-up name their cause and remedy, instead of an error of a library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.checks.model_checks import check_lazy_references
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.signals import post_save

import outbox
from outbox.conditions import only_for_models, only_when_field_changed
from outbox.errors import MissingTables
from outbox.models import Event
from outbox.registry import registry
from tests.support.data_flow import publish

pytestmark = pytest.mark.django_db


# ---------------------------------------------------------------- the client of the broker

# `None` in sys.modules makes an import fail as if the package were not installed.
SETUP = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    **{options!r},
)
django.setup()
"""


def setup(*missing: str, installed: tuple[str, ...] = ("outbox", "django_dramatiq"), **options: Any) -> str:
    """Set Django up in another process, without some packages; return the last line of its errors."""
    code = SETUP.format(missing=missing, options=options, apps=("django.contrib.contenttypes", *installed))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr.strip().rpartition("\n")[2]


def test_a_missing_client_of_the_default_broker_is_named_with_the_setting() -> None:
    message = setup("pika")
    assert "ImproperlyConfigured: DRAMATIQ_BROKER is not set, and its default" in message
    assert "'dramatiq.brokers.rabbitmq.RabbitmqBroker' cannot be imported" in message
    assert "set DRAMATIQ_BROKER to your broker" in message
    assert "install django-dramatiq-outbox[rabbitmq]" in message


def test_a_missing_client_of_the_chosen_broker_is_named_with_its_extra() -> None:
    message = setup("redis", DRAMATIQ_BROKER={"BROKER": "dramatiq.brokers.redis.RedisBroker"})
    assert "the broker 'dramatiq.brokers.redis.RedisBroker' of DRAMATIQ_BROKER cannot be imported" in message
    assert "install django-dramatiq-outbox[redis]" in message


def test_a_missing_client_without_django_dramatiq_is_named_with_the_app() -> None:
    message = setup("pika", "redis", installed=("outbox",))
    assert "no Dramatiq broker is set: add 'django_dramatiq' to INSTALLED_APPS" in message


def test_an_installed_client_raises_nothing() -> None:
    broker = {"BROKER": "dramatiq.brokers.stub.StubBroker", "OPTIONS": {}, "MIDDLEWARE": []}
    assert setup("pika", "redis", DRAMATIQ_BROKER=broker) == ""


# ---------------------------------------------------------------- tables


@pytest.fixture(params=["outbox_event", "outbox_delivery"])
def missing_table(request: pytest.FixtureRequest) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {request.param} RENAME TO {request.param}_away")


@pytest.mark.usefixtures("missing_table")
@pytest.mark.parametrize("many", [None, 1, 10])
def test_publishing_before_the_migration_names_the_command(many: int | None) -> None:
    with (
        pytest.raises(MissingTables, match=r"'default' lacks the outbox's tables; run manage\.py migrate"),
        transaction.atomic(),
    ):
        if many is None:
            publish("test.recorded")
        else:
            outbox.publish_many([{"topic": "test.recorded"}] * many)


@pytest.mark.usefixtures("missing_table")
def test_publishing_with_a_dedup_key_before_the_migration_names_the_command() -> None:
    with pytest.raises(MissingTables), transaction.atomic():
        publish("test.recorded", dedup_key="a")


def test_publishing_before_an_upgrade_of_the_tables_names_the_command() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE outbox_event RENAME COLUMN topic TO old_topic")
    with pytest.raises(MissingTables, match="columns of this release; run manage"), transaction.atomic():
        publish("test.recorded")
    with pytest.raises(CommandError, match="lacks the outbox's columns of this release"):
        call_command("outbox_replay", "--event", "00000000-0000-0000-0000-000000000000")


def test_another_error_of_the_database_stays_as_it_is() -> None:
    event = publish("test.recorded")
    with pytest.raises(Exception) as raised, transaction.atomic():  # noqa: PT011  # compared below
        Event.objects.create(pk=event.pk, topic="a", payload={})
    assert not isinstance(raised.value, MissingTables)


# ---------------------------------------------------------------- senders


@pytest.fixture
def pending() -> Iterator[None]:
    """Forget the lazy references of a test."""
    before = {key: list(functions) for key, functions in apps._pending_operations.items()}
    yield
    apps._pending_operations.clear()
    apps._pending_operations.update(before)


@pytest.mark.usefixtures("pending")
def test_a_sender_that_does_not_exist_is_reported_with_the_receiver() -> None:
    @outbox.receiver(post_save, sender="testapp.Prodcut", name="tests.lazy")
    def handle(sender: Any, **named: Any) -> None:
        pass

    try:
        (error,) = check_lazy_references(None)
    finally:
        registry.remove("tests.lazy")
    assert error.msg.startswith("The receiver 'tests.lazy' with sender='testapp.Prodcut' contains")
    assert "app 'testapp' doesn't provide model 'prodcut'" in error.msg


@pytest.mark.usefixtures("pending")
def test_models_of_conditions_that_do_not_exist_are_reported_with_the_condition() -> None:
    (only_for_models("testapp.Prodcut") & only_when_field_changed("name")).bind()
    messages = [error.msg for error in check_lazy_references(None)]
    assert any(one.startswith("only_for_models('testapp.Prodcut') contains") for one in messages)
    assert any(one.startswith("only_when_field_changed('name') contains") for one in messages)

"""The system checks: each fault raises its id, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from django.core.checks import INFO, CheckMessage, run_checks
from django.db import connections
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Retries

import outbox
from outbox.brokers import RedisBroker
from outbox.registry import registry

# Django's check of a JSON field asks SQLite whether it supports JSON.
pytestmark = pytest.mark.django_db


def found(databases: tuple[str, ...] = ()) -> dict[str, CheckMessage]:
    """Return the messages of the outbox by id."""
    messages = run_checks(databases=list(databases))
    return {str(one.id): one for one in messages if str(one.id).startswith("outbox.")}


@pytest.fixture(autouse=True)
def no_database_warning(settings: Any) -> None:
    """Suppress the warning of SQLite, on which these tests may run."""
    settings.DEBUG = True


@pytest.fixture
def broker() -> Iterator[dramatiq.Broker]:
    """Return the broker; restore its middleware after the test."""
    broker = dramatiq.get_broker()
    before = broker.middleware[:]
    yield broker
    broker.middleware[:] = before


def test_a_valid_project_gets_only_information() -> None:
    assert set(found(("default",))) == {"outbox.I001"}


def test_the_models_with_atomic_saves_are_listed(settings: Any) -> None:
    message = found()["outbox.I001"]
    assert message.level == INFO
    assert message.msg.endswith(": testapp.Shipment.")
    settings.OUTBOX = {"ATOMIC_SAVES": False}
    assert found() == {}


def test_each_invalid_setting_is_reported(settings: Any) -> None:
    settings.OUTBOX = {"BATCHSIZE": 7, "LISTEN": "no"}
    messages = [one for one in run_checks() if one.id == "outbox.E001"]
    assert [one.msg for one in messages] == [
        "OUTBOX['BATCHSIZE'] is not a setting; did you mean 'BATCH_SIZE'?",
        "OUTBOX['LISTEN'] is 'no'; it must be of type bool",
    ]


def test_invalid_settings_do_not_break_the_other_checks(settings: Any) -> None:
    settings.OUTBOX = {"DATABASES": ["absent"]}
    assert set(found(("default",))) == {"outbox.E001"}


def test_a_project_without_django_dramatiq_is_refused(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_dramatiq"]
    assert "django_dramatiq" in str(found()["outbox.E002"].hint)


def test_a_database_without_autocommit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "AUTOCOMMIT", False)
    message = found()["outbox.E005"]
    assert "commits nothing" in message.msg
    assert "AUTOCOMMIT" in str(message.hint)


def test_an_unsupported_database_engine_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(connections["default"]), "vendor", "mysql")
    message = found()["outbox.E003"]
    assert "locking differs" in message.msg
    assert "PostgreSQL" in str(message.hint)


def test_a_server_that_cannot_skip_locked_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(connections["default"]), "vendor", "postgresql")
    features = connections["default"].features
    monkeypatch.setattr(features, "has_select_for_update_skip_locked", False, raising=False)
    assert "cannot skip locked rows" in found(("default",))["outbox.E003"].msg


def test_sqlite_in_production_is_a_warning(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(connections["default"]), "vendor", "sqlite")
    assert "outbox.W002" not in found()
    settings.DEBUG = False
    assert "one relay" in found()["outbox.W002"].msg


def test_a_handler_name_that_is_declared_twice_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "duplicates", ["handler 'mail' is declared twice: a and b"])
    assert found()["outbox.E004"].msg == "handler 'mail' is declared twice: a and b"


def test_rabbitmq_without_confirms_is_a_warning(
    broker: dramatiq.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "confirm_delivery", False, raising=False)
    assert "confirm_delivery" in str(found()["outbox.W001"].hint)
    monkeypatch.setattr(broker, "confirm_delivery", True)
    assert "outbox.W001" not in found()


def test_a_broker_without_retries_is_a_warning(broker: dramatiq.Broker) -> None:
    broker.middleware[:] = [one for one in broker.middleware if not isinstance(one, Retries)]
    assert "Retries" in str(found()["outbox.W003"].hint)


def test_a_middleware_that_writes_a_row_for_each_message_is_a_warning(broker: dramatiq.Broker) -> None:
    from django_dramatiq.middleware import AdminMiddleware

    broker.middleware.append(AdminMiddleware())
    assert "Remove it" in str(found()["outbox.W004"].hint)


def test_the_polling_broker_of_dramatiq_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    polling = pytest.importorskip("dramatiq.brokers.redis").RedisBroker()
    monkeypatch.setattr(dramatiq, "get_broker", lambda: polling)
    assert "outbox.brokers.RedisBroker" in str(found()["outbox.I002"].hint)
    monkeypatch.setattr(dramatiq, "get_broker", lambda: RedisBroker())
    assert "outbox.I002" not in found()


def test_an_async_handler_without_the_asyncio_middleware_is_refused(broker: dramatiq.Broker) -> None:
    broker.middleware[:] = [one for one in broker.middleware if not isinstance(one, AsyncIO)]
    message = found()["outbox.E006"]
    assert message.msg.startswith("Handler 'async_context' is async")
    assert "dramatiq.middleware.AsyncIO" in str(message.hint)


def test_a_default_broker_that_replaces_the_broker_of_the_handlers_is_refused(
    broker: dramatiq.Broker,
) -> None:
    dramatiq.set_broker(StubBroker(middleware=[Retries()]))
    try:
        message = found()["outbox.E007"]
    finally:
        dramatiq.set_broker(broker)
    assert "no worker runs" in message.msg
    assert "DRAMATIQ_BROKER" in str(message.hint)


def test_a_handler_that_names_another_broker_is_no_fault() -> None:
    other = StubBroker(middleware=[Retries()])

    @outbox.handler("other.broker", name="on_other_broker", broker=other)
    def on_other_broker(event: Any) -> None: ...

    try:
        assert set(found()) == {"outbox.I001"}
    finally:
        registry.remove("on_other_broker")

"""The system checks: each id is raised by its fault, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import connections
from dramatiq.middleware import Retries

from outbox.registry import registry

# Django's own check of a JSON field asks SQLite whether it has JSON.
pytestmark = pytest.mark.django_db


def found(databases: tuple[str, ...] = ()) -> dict[str, CheckMessage]:
    """Return the messages of the outbox by id."""
    messages = run_checks(databases=list(databases))
    return {str(one.id): one for one in messages if str(one.id).startswith("outbox.")}


@pytest.fixture(autouse=True)
def no_warning_of_the_database(settings: Any) -> None:
    """Leave out the warning that comes with running these tests on SQLite."""
    settings.DEBUG = True


@pytest.fixture
def broker() -> Iterator[dramatiq.Broker]:
    """Return the broker; its middleware is as before after the test."""
    broker = dramatiq.get_broker()
    before = broker.middleware[:]
    yield broker
    broker.middleware[:] = before


def test_a_sound_project_has_nothing_to_hear() -> None:
    assert found(("default",)) == {}


def test_unknown_and_ill_typed_settings_are_reported_each(settings: Any) -> None:
    settings.OUTBOX = {"BATCHSIZE": 7, "LISTEN": "no"}
    messages = [one for one in run_checks() if one.id == "outbox.E001"]
    assert [one.msg for one in messages] == [
        "OUTBOX['BATCHSIZE'] is not a setting; did you mean 'BATCH_SIZE'?",
        "OUTBOX['LISTEN'] is 'no'; it must be of type bool",
    ]


def test_the_other_checks_survive_settings_that_cannot_be_read(settings: Any) -> None:
    settings.OUTBOX = {"DATABASES": ["absent"]}
    assert set(found(("default",))) == {"outbox.E001"}


def test_a_project_without_django_dramatiq_is_told(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_dramatiq"]
    assert "django_dramatiq" in str(found()["outbox.E002"].hint)


def test_a_database_of_another_kind_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert found() == {}
    settings.DEBUG = False
    assert "one relay" in found()["outbox.W002"].msg


def test_a_name_that_two_functions_claim_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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

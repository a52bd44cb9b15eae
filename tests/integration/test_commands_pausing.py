"""The commands that pause and resume, and paused handlers and blocked keys in outbox_status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.management.commands import outbox_resume, outbox_status
from outbox.models import Delivery, PausedHandler
from outbox.operations import health, health_figures
from outbox.registry import registry
from tests.support.factories import make_delivery, make_event

from .test_commands import run

pytestmark = pytest.mark.django_db


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the databases whose relays were woken."""
    databases: list[str] = []
    monkeypatch.setattr(outbox_resume, "wake", databases.append)
    return databases


@pytest.fixture
def ordered_handler() -> Iterator[str]:
    """Declare an ordered handler, and return its name."""
    outbox.handler("ledger.*", name="ledger", ordered=True)(lambda event: None)
    yield "ledger"
    registry.remove("ledger")


# ---------------------------------------------------------------- outbox_pause, outbox_resume


def test_a_handler_is_paused_and_resumed(woken: list[str]) -> None:
    assert "record is paused" in run("outbox_pause", "record", "--reason", "no mail server")
    assert PausedHandler.objects.get().reason == "no mail server"
    delivery = make_delivery(handler="record", waits_for="resume")
    assert "record is resumed." in run("outbox_resume", "record")
    delivery.refresh_from_db()
    assert (delivery.waits_for, PausedHandler.objects.count(), woken) == ("", 0, ["default"])


def test_a_second_pause_shows_time_and_reason_of_the_first() -> None:
    run("outbox_pause", "record", "--reason", "no mail server")
    text = run("outbox_pause", "record", "--reason", "another")
    assert "record was already paused since" in text
    assert "no mail server" in text


def test_all_paused_handlers_are_resumed_even_if_unregistered(woken: list[str]) -> None:
    for name in ("record", "gone.from.the.code"):
        PausedHandler.objects.pause(name)
    assert run("outbox_resume", "--all").splitlines() == [
        "gone.from.the.code is resumed.",
        "record is resumed.",
    ]
    assert "No handler is paused." in run("outbox_resume", "--all")


def test_the_command_resumes_a_long_backlog_in_chunks(
    monkeypatch: pytest.MonkeyPatch, woken: list[str]
) -> None:
    monkeypatch.setattr("outbox.models.pause.RESUME_CHUNK", 2)
    for _ in range(5):
        make_delivery(handler="record", waits_for="resume")
    PausedHandler.objects.pause("record")
    with CaptureQueriesContext(connection) as queries:
        run("outbox_resume", "record")
    updates = [query["sql"] for query in queries if query["sql"].startswith('UPDATE "outbox_delivery"')]
    assert len(updates) == 3
    assert not Delivery.objects.filter(waits_for="resume").exists()


def test_an_unregistered_handler_can_be_resumed(woken: list[str]) -> None:
    PausedHandler.objects.pause("gone.from.the.code")
    run("outbox_resume", "gone.from.the.code")
    assert not PausedHandler.objects.exists()


def test_resuming_ends_waits_that_began_after_the_last_resume(woken: list[str]) -> None:
    delivery = make_delivery(handler="record", waits_for="resume")
    assert "record was not paused." in run("outbox_resume", "record")
    delivery.refresh_from_db()
    assert delivery.waits_for == ""


@pytest.mark.parametrize("command", ["outbox_pause", "outbox_resume"])
def test_a_misspelt_handler_is_refused_with_a_suggestion(command: str) -> None:
    with pytest.raises(CommandError, match=r"handler 'recrod' is not registered; did you mean 'record'"):
        run(command, "recrod")


@pytest.mark.parametrize("arguments", [[], ["record", "--all"]])
def test_resuming_needs_a_name_or_all(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="give the name of a handler, or --all"):
        run("outbox_resume", *arguments)


# ---------------------------------------------------------------- outbox_status


def block_key(handler: str, key: str) -> Any:
    head = make_delivery(
        make_event("ledger.entry"), "failed", handler=handler, key=key, error="Traceback\nValueError: no"
    )
    for _number in range(2):
        make_delivery(handler=handler, key=key, waits_for="key")
    return head


def test_status_lists_paused_handlers_and_blocked_keys(ordered_handler: str) -> None:
    run("outbox_pause", "record", "--reason", "no mail server")
    make_delivery(handler="record", waits_for="resume")
    head = block_key(ordered_handler, "order-7")
    status = json.loads(run("outbox_status", "--format", "json"))
    (paused,) = status["paused"]
    assert paused.pop("paused_at")
    assert paused.pop("paused_s") >= 0
    assert paused == {"handler": "record", "reason": "no mail server", "waiting": 1}
    (blocked,) = status["blocked_keys"]
    assert blocked.pop("failed_at")
    assert blocked == {
        "handler": "ledger",
        "key": "order-7",
        "delivery_id": head.pk,
        "event_id": str(head.event_id),
        "topic": "ledger.entry",
        "error": "ValueError: no",
        "waiting": 2,
    }
    text = run("outbox_status")
    for part in ("no mail server", "order-7", f"#{head.pk}", str(head.event_id), "ValueError: no"):
        assert part in text


def test_status_lists_no_more_than_its_limit(ordered_handler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outbox_status, health, health_figures):
        monkeypatch.setattr(module, "LIST_LIMIT", 2)
    for number in range(3):
        block_key(ordered_handler, f"order-{number}")
        PausedHandler.objects.pause(f"handler-{number}")
    text = run("outbox_status")
    assert text.count("2+") == 2
    assert "order-2" not in text
    assert "handler-2" not in text


def test_status_without_paused_handlers_and_blocked_keys_lists_none() -> None:
    text = run("outbox_status")
    assert "blocked by" not in text
    assert "reason" not in text
    status = json.loads(run("outbox_status", "--format", "json"))
    assert (status["paused"], status["blocked_keys"], status["list_limit"]) == ([], [], 20)

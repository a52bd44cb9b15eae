"""The commands that pause and resume, and what outbox_status says of paused handlers and blocked lanes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError

import outbox
from outbox.management.commands import outbox_resume, outbox_status
from outbox.models import PausedHandler
from outbox.registry import registry
from tests.factories import make_delivery, make_event
from tests.integration.test_commands import run

pytestmark = pytest.mark.django_db


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the databases whose relays were woken."""
    databases: list[str] = []
    monkeypatch.setattr(outbox_resume, "wake", databases.append)
    return databases


@pytest.fixture
def lane() -> Iterator[str]:
    """Declare an ordered handler, and return its name."""
    outbox.handler("lane.*", name="lane", ordered=True)(lambda event: None)
    yield "lane"
    registry.remove("lane")


# ---------------------------------------------------------------- outbox_pause, outbox_resume


def test_a_handler_is_paused_and_resumed(woken: list[str]) -> None:
    assert "record is paused" in run("outbox_pause", "record", "--reason", "no mail server")
    assert PausedHandler.objects.get().reason == "no mail server"
    delivery = make_delivery(handler="record", held="pause")
    assert "record goes on." in run("outbox_resume", "record")
    delivery.refresh_from_db()
    assert (delivery.held, PausedHandler.objects.count(), woken) == ("", 0, ["default"])


def test_a_second_pause_says_since_when_and_why() -> None:
    run("outbox_pause", "record", "--reason", "no mail server")
    text = run("outbox_pause", "record", "--reason", "another")
    assert "record was paused already since" in text
    assert "no mail server" in text


def test_all_paused_handlers_are_resumed_known_or_not(woken: list[str]) -> None:
    for name in ("record", "gone.from.the.code"):
        PausedHandler.objects.pause(name)
    assert run("outbox_resume", "--all").splitlines() == ["gone.from.the.code goes on.", "record goes on."]
    assert "No handler is paused." in run("outbox_resume", "--all")


def test_a_handler_that_is_gone_from_the_code_can_be_resumed(woken: list[str]) -> None:
    PausedHandler.objects.pause("gone.from.the.code")
    run("outbox_resume", "gone.from.the.code")
    assert not PausedHandler.objects.exists()


def test_resuming_lets_go_what_a_relay_held_after_the_last_time(woken: list[str]) -> None:
    delivery = make_delivery(handler="record", held="pause")
    assert "record was not paused." in run("outbox_resume", "record")
    delivery.refresh_from_db()
    assert delivery.held == ""


@pytest.mark.parametrize("command", ["outbox_pause", "outbox_resume"])
def test_a_misspelt_handler_is_refused_with_a_suggestion(command: str) -> None:
    with pytest.raises(CommandError, match=r"handler 'recrod' is not registered; did you mean 'record'"):
        run(command, "recrod")


@pytest.mark.parametrize("arguments", [[], ["record", "--all"]])
def test_resuming_needs_a_name_or_all(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="give the name of a handler, or --all"):
        run("outbox_resume", *arguments)


# ---------------------------------------------------------------- outbox_status


def blocked_lane(handler: str, key: str) -> Any:
    head = make_delivery(
        make_event("lane.x"), "failed", handler=handler, key=key, error="Traceback\nValueError: no"
    )
    for _number in range(2):
        make_delivery(handler=handler, key=key, held="lane")
    return head


def test_status_names_paused_handlers_and_blocked_lanes(lane: str) -> None:
    run("outbox_pause", "record", "--reason", "no mail server")
    make_delivery(handler="record", held="pause")
    head = blocked_lane(lane, "order-7")
    status = json.loads(run("outbox_status", "--format", "json"))
    (paused,) = status["paused"]
    assert paused.pop("paused_at")
    assert paused == {"handler": "record", "reason": "no mail server", "waiting": 1}
    (blocked,) = status["blocked_lanes"]
    assert blocked.pop("failed_at")
    assert blocked == {
        "handler": "lane",
        "key": "order-7",
        "delivery_id": head.pk,
        "event_id": str(head.event_id),
        "topic": "lane.x",
        "error": "ValueError: no",
        "waiting": 2,
    }
    text = run("outbox_status")
    for part in ("no mail server", "order-7", f"#{head.pk}", str(head.event_id), "ValueError: no"):
        assert part in text


def test_status_names_no_more_than_its_limit(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_status, "LIST_LIMIT", 2)
    for number in range(3):
        blocked_lane(lane, f"order-{number}")
        PausedHandler.objects.pause(f"handler-{number}")
    text = run("outbox_status")
    assert text.count("2+") == 2
    assert "order-2" not in text
    assert "handler-2" not in text


def test_status_without_any_has_no_tables_of_them() -> None:
    assert "behind" not in run("outbox_status")
    status = json.loads(run("outbox_status", "--format", "json"))
    assert (status["paused"], status["blocked_lanes"], status["list_limit"]) == ([], [], 20)

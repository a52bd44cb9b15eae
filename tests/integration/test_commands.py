"""The commands that change deliveries: what they do, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from outbox.management.commands import outbox_replay, outbox_retry
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.subscriptions import handler
from tests.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db


def run(name: str, *args: Any) -> str:
    """Run a command as the command line would, and return what it printed."""
    out = StringIO()
    call_command(name, *map(str, args), stdout=out, stderr=out)
    return out.getvalue()


@pytest.fixture
def mail() -> Iterator[str]:
    """Declare a handler of `shop.*`, and return its name."""
    name = "tests.commands.mail"
    handler("shop.*", name=name, queue_name="mail")(lambda event: None)
    yield name
    registry.remove(name)


@pytest.fixture
def stock() -> Iterator[str]:
    """Declare an ordered handler of `shop.order_paid`, and return its name."""
    name = "tests.commands.stock"
    handler("shop.order_paid", name=name, queue_name="stock", ordered=True)(lambda event: None)
    yield name
    registry.remove(name)


# ---------------------------------------------------------------- outbox_retry


def test_failed_deliveries_are_retried_by_id(mail: str) -> None:
    failed, other, done = (make_delivery(status=status) for status in ("failed", "failed", "succeeded"))
    text = run("outbox_retry", failed.pk, done.pk, 10**12)
    assert "1 failed deliveries will be sent again." in text
    assert "2 of the given ids are not of failed deliveries." in text
    assert state(failed) == "pending"
    assert (state(other), state(done)) == ("failed", "succeeded")


def test_failed_deliveries_are_retried_by_handler_topic_and_time(mail: str) -> None:
    wanted = make_delivery(make_event("shop.order_paid"), "failed", handler=mail)
    others = [
        make_delivery(make_event("shop.order_paid"), "failed", handler="someone.else"),
        make_delivery(make_event("web.click"), "failed", handler=mail),
        make_delivery(make_event("shop.order_paid"), "failed", handler=mail, finished_at=days_ago(2)),
    ]
    run("outbox_retry", "--handler", mail, "--topic", "shop.*", "--since", "1d")
    assert state(wanted) == "pending"
    assert [state(other) for other in others] == ["failed"] * 3


def test_all_failed_deliveries_are_retried_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_retry, "CHUNK", 2)
    for _number in range(5):
        make_delivery(status="failed")
    assert "5 failed" in run("outbox_retry", "--all")
    assert not Delivery.objects.failed().exists()


@pytest.mark.parametrize(
    "arguments", [[], ["--all", "7"], ["7", "--since", "1h"], ["--all", "--topic", "shop.*"]]
)
def test_a_retry_needs_one_kind_of_selection(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="exactly one of these kinds"):
        run("outbox_retry", *arguments)


def test_a_misspelt_handler_or_pattern_is_refused(mail: str) -> None:
    with pytest.raises(CommandError, match=r"'tests\.commands\.mial' is not registered; did you mean"):
        run("outbox_retry", "--handler", "tests.commands.mial")
    with pytest.raises(CommandError, match="topic pattern"):
        run("outbox_retry", "--topic", "shop.**")


# ---------------------------------------------------------------- outbox_replay


def test_an_event_is_replayed_to_the_handlers_of_today(mail: str, stock: str) -> None:
    event = make_event("shop.order_paid", key="order-7")
    make_delivery(event, "succeeded", handler="handler.of.yesterday")
    text = run("outbox_replay", "--event", event.pk)
    assert "2 new deliveries written." in text
    new = {one.handler: one for one in Delivery.objects.filter(event=event, status="pending")}
    assert set(new) == {mail, stock}
    assert (new[mail].queue, new[mail].key, new[mail].attempts) == ("mail", "", 0)
    assert (new[stock].queue, new[stock].key) == ("stock", "order-7")


def test_a_replay_to_one_handler_leaves_out_events_that_it_does_not_subscribe_to(
    mail: str, stock: str
) -> None:
    paid, sent = make_event("shop.order_paid"), make_event("shop.order_sent")
    run("outbox_replay", "--topic", "shop.*", "--since", "1h", "--handler", stock)
    assert list(Delivery.objects.values_list("event_id", "handler")) == [(paid.pk, stock)]
    assert not sent.deliveries.exists()


def test_a_receiver_that_an_event_was_addressed_to_gets_it_again() -> None:
    name = next(name for name, one in registry.handlers.items() if one.kind != "event")
    event = make_event("some.signal")
    make_delivery(event, "succeeded", handler=name)
    run("outbox_replay", "--event", event.pk)
    assert list(event.deliveries.filter(status="pending").values_list("handler", flat=True)) == [name]


def test_a_replay_covers_a_span_of_time_in_chunks(mail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_replay, "CHUNK", 2)
    wanted = [make_event("shop.a", created_at=days_ago(day)) for day in (5, 4, 3, 2)]
    for day in (7, 1):
        make_event("shop.a", created_at=days_ago(day))
    make_event("web.click", created_at=days_ago(3))
    since, until = days_ago(6).isoformat(), (timezone.now() - timedelta(hours=36)).isoformat()
    text = run("outbox_replay", "--topic", "shop.*", "--since", since, "--until", until)
    assert "4 new deliveries written." in text
    found = Delivery.objects.order_by("pk").values_list("event_id", flat=True)
    assert list(found) == [event.pk for event in wanted]


def test_a_dry_run_writes_nothing(mail: str) -> None:
    make_event("shop.a")
    assert "1 new deliveries would be written." in run(
        "outbox_replay", "--topic", "shop.*", "--since", "1h", "--dry-run"
    )
    assert not Delivery.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--topic", "shop.*"], "--topic needs --since"),
        (["--event", str(uuid4())], "does not exist; it may have been pruned"),
        (["--event", str(uuid4()), "--since", "1h"], "go with --topic"),
        (["--event", "seven"], "invalid UUID value"),
        (["--topic", "shop.*", "--since", "yesterday"], "neither a duration such as 2h nor a time"),
        (["--topic", "shop.*", "--since", "2026-02-30T09:00"], "neither a duration such as 2h nor a time"),
        (["--topic", "shop.*", "--since", "1h", "--handler", "no"], "'no' is not registered"),
        ([], "one of the arguments --event --topic is required"),
    ],
)
def test_a_replay_refuses_what_it_cannot_mean(arguments: list[str], reason: str) -> None:
    with pytest.raises(CommandError, match=reason.replace("*", r"\*")):
        run("outbox_replay", *arguments)


# ---------------------------------------------------------------- outbox_prune


def test_pruning_deletes_what_is_done_and_past_its_retention() -> None:
    done, waiting, failed = (
        make_delivery(make_event(created_at=days_ago(30)), status)
        for status in ("succeeded", "pending", "failed")
    )
    recent = make_delivery(make_event(created_at=days_ago(1)), "succeeded")
    assert "1 events would be deleted." in run("outbox_prune", "--dry-run")
    assert Event.objects.count() == 4
    assert "1 events deleted." in run("outbox_prune")
    assert set(Event.objects.values_list("pk", flat=True)) == {
        each.event_id for each in (waiting, failed, recent)
    }
    assert not Delivery.objects.filter(pk=done.pk).exists()


def test_pruning_an_empty_table_is_no_error() -> None:
    assert "0 events deleted." in run("outbox_prune")


def days_ago(days: int) -> Any:
    return timezone.now() - timedelta(days=days)


def state(delivery: Delivery) -> str:
    delivery.refresh_from_db()
    return delivery.status

"""The commands that retry, replay and prune, and their refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from outbox.management.commands import _options
from outbox.models import Delivery, Event
from outbox.operations import replay, retry
from outbox.registry import registry
from outbox.subscribing.handler import handler
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db


def run(name: str, *args: Any) -> str:
    """Run a command as the command line would, and return its output."""
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


def test_unconfirmed_deliveries_are_resent_by_id(mail: str) -> None:
    lost, other = (make_delivery(state="dispatched", handler=mail, redeliveries=2) for _ in range(2))
    failed = make_delivery(state="failed", handler=mail)
    text = run("outbox_retry", lost.pk, failed.pk)
    assert "1 failed and 1 unconfirmed deliveries will be resent." in text
    assert "An unconfirmed delivery runs twice if its earlier message still arrives." in text
    assert (state(lost), lost.resends, lost.redeliveries, lost.confirm_by) == ("pending", 1, 0, None)
    assert (state(failed), state(other)) == ("pending", "dispatched")


def test_filters_resend_no_unconfirmed_delivery(mail: str) -> None:
    unconfirmed = make_delivery(state="dispatched", handler=mail)
    assert "0 failed deliveries will be resent." in run("outbox_retry", "--handler", mail)
    assert "0 failed deliveries will be resent." in run("outbox_retry", "--all")
    assert state(unconfirmed) == "dispatched"


def test_failed_deliveries_are_retried_by_id(mail: str) -> None:
    failed, other, done = (make_delivery(state=state) for state in ("failed", "failed", "succeeded"))
    text = run("outbox_retry", failed.pk, done.pk, 10**12)
    assert "1 failed deliveries will be resent." in text
    assert "2 of the given ids are neither failed nor unconfirmed." in text
    assert (state(failed), failed.resends, failed.attempts) == ("pending", 1, 0)
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
    monkeypatch.setattr(retry, "CHUNK", 2)
    for _number in range(5):
        make_delivery(state="failed")
    assert "5 failed" in run("outbox_retry", "--all")
    assert not Delivery.objects.failed().exists()


def test_a_dry_run_counts_and_changes_nothing(mail: str) -> None:
    failed, unconfirmed = make_delivery(state="failed"), make_delivery(state="dispatched")
    assert "1 deliveries would be resent." in run("outbox_retry", "--all", "--dry-run")
    assert "2 deliveries would be resent." in run("outbox_retry", failed.pk, unconfirmed.pk, "--dry-run")
    dry = ("--reason", "obsolete", "--dry-run")
    assert "1 failed deliveries would be discarded." in run("outbox_discard", "--all", *dry)
    assert (state(failed), state(unconfirmed)) == ("failed", "dispatched")


@pytest.mark.parametrize("command", [("outbox_retry",), ("outbox_discard", "--reason", "obsolete")])
def test_a_change_of_many_deliveries_needs_an_answer(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *more = command
    monkeypatch.setattr(_options, "ASK_ABOVE", 1)
    for _number in range(2):
        make_delivery(state="failed")
    monkeypatch.setattr(sys, "stdin", StringIO())
    with pytest.raises(CommandError, match=r"more than 1 deliveries will be .*; give --yes"):
        run(name, "--all", *more)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    with pytest.raises(CommandError, match="nothing was changed"):
        run(name, "--all", *more)
    assert Delivery.objects.failed().count() == 2
    monkeypatch.setattr("builtins.input", lambda _question: "y")
    run(name, "--all", *more)
    assert not Delivery.objects.failed().exists()
    for _number in range(2):
        make_delivery(state="failed")
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    run(name, "--all", "--yes", *more)
    assert not Delivery.objects.failed().exists()


# ---------------------------------------------------------------- outbox_discard


def test_failed_deliveries_are_discarded_by_id_with_the_reason(mail: str) -> None:
    failed, done = make_delivery(state="failed", error="ValueError: no"), make_delivery(state="succeeded")
    text = run("outbox_discard", failed.pk, done.pk, "--reason", "obsolete")
    assert "1 failed deliveries were discarded." in text
    assert "1 of the given ids are not failed." in text
    assert (state(failed), failed.error) == ("discarded", "obsolete\n\nValueError: no")
    assert state(done) == "succeeded"


@pytest.mark.django_db(transaction=True)
def test_a_discard_by_handler_unblocks_ordering_keys(
    stock: str, mail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(retry, "wake", woken.append)
    head = make_delivery(state="failed", handler=stock, key="order-7")
    waiting = make_delivery(handler=stock, key="order-7", waits_for="key")
    other = make_delivery(state="failed", handler=mail)
    run("outbox_discard", "--handler", stock, "--reason", "obsolete")
    assert (state(head), state(waiting), state(other)) == ("discarded", "pending", "failed")
    assert waiting.waits_for == ""
    # The relays may sleep, and the next delivery of the key is due.
    assert woken == ["default"]


@pytest.mark.django_db(transaction=True)
def test_a_discard_by_topic_unblocks_the_keys_of_a_handler_that_skips_failures() -> None:
    name = "tests.commands.skips"
    handler("shop.*", name=name, queue_name="mail", ordered=True, on_failure="skip")(lambda event: None)
    try:
        make_delivery(make_event("shop.paid"), "failed", handler=name, key="order-7")
        make_delivery(make_event("shop.sent"), "failed", handler=name, key="order-7")
        waiting = make_delivery(handler=name, key="order-7", waits_for="key")
        run("outbox_discard", "--topic", "shop.paid", "--reason", "obsolete")
        assert state(waiting) == "pending"
        assert waiting.waits_for == ""
    finally:
        registry.remove(name)


@pytest.mark.parametrize("command", [("outbox_retry",), ("outbox_discard", "--reason", "x")])
@pytest.mark.parametrize(
    "arguments", [[], ["--all", "7"], ["7", "--since", "1h"], ["--all", "--topic", "shop.*"]]
)
def test_a_change_needs_one_kind_of_selection(command: tuple[str, ...], arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="exactly one of these kinds"):
        run(*command, *arguments)


def test_a_misspelt_handler_or_pattern_is_refused(mail: str) -> None:
    with pytest.raises(CommandError, match=r"'tests\.commands\.mial' is not registered; did you mean"):
        run("outbox_retry", "--handler", "tests.commands.mial")
    with pytest.raises(CommandError, match="topic pattern"):
        run("outbox_retry", "--topic", "shop.**")


# ---------------------------------------------------------------- outbox_replay


def test_an_event_is_replayed_to_the_handlers_that_are_subscribed_now(mail: str, stock: str) -> None:
    event = make_event("shop.order_paid", key="order-7")
    make_delivery(event, "succeeded", handler="handler.of.yesterday")
    text = run("outbox_replay", "--event", event.pk)
    assert "2 new deliveries written." in text
    new = {one.handler: one for one in Delivery.objects.filter(event=event, state="pending")}
    assert set(new) == {mail, stock}
    assert (new[mail].queue, new[mail].key, new[mail].attempts) == ("mail", "", 0)
    assert (new[stock].queue, new[stock].key) == ("stock", "order-7")


def test_a_replay_to_one_handler_skips_events_without_its_subscription(mail: str, stock: str) -> None:
    paid, sent = make_event("shop.order_paid"), make_event("shop.order_sent")
    run("outbox_replay", "--topic", "shop.*", "--since", "1h", "--handler", stock)
    assert list(Delivery.objects.values_list("event_id", "handler")) == [(paid.pk, stock)]
    assert not sent.deliveries.exists()


def test_a_replay_includes_the_receiver_of_an_earlier_delivery() -> None:
    name = next(name for name, one in registry.handlers.items() if one.kind != "event")
    event = make_event("some.signal")
    make_delivery(event, "succeeded", handler=name)
    run("outbox_replay", "--event", event.pk)
    assert list(event.deliveries.filter(state="pending").values_list("handler", flat=True)) == [name]


def test_a_replay_covers_a_span_of_time_in_chunks(mail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CHUNK", 2)
    wanted = [make_event("shop.a", created_at=days_ago(day)) for day in (5, 4, 3, 2)]
    for day in (7, 1):
        make_event("shop.a", created_at=days_ago(day))
    make_event("web.click", created_at=days_ago(3))
    since, until = days_ago(6).isoformat(), (timezone.now() - timedelta(hours=36)).isoformat()
    text = run("outbox_replay", "--topic", "shop.*", "--since", since, "--until", until)
    assert "4 new deliveries written." in text
    found = Delivery.objects.order_by("pk").values_list("event_id", flat=True)
    assert list(found) == [event.pk for event in wanted]


def test_a_dry_run_of_a_replay_writes_nothing(mail: str) -> None:
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
def test_a_replay_refuses_wrong_options(arguments: list[str], reason: str) -> None:
    with pytest.raises(CommandError, match=reason.replace("*", r"\*")):
        run("outbox_replay", *arguments)


def test_a_large_replay_needs_an_answer(monkeypatch: pytest.MonkeyPatch, mail: str) -> None:
    monkeypatch.setattr(_options, "ASK_ABOVE", 0)
    monkeypatch.setattr(sys, "stdin", StringIO())
    event = make_event("shop.order_paid")
    before = make_delivery(event, "succeeded", handler=mail).event.deliveries.count()
    arguments = ("--topic", "shop.*", "--since", "1h")
    with pytest.raises(CommandError, match=r"deliveries will be written; give --yes"):
        run("outbox_replay", *arguments)
    assert event.deliveries.count() == before
    run("outbox_replay", *arguments, "--yes")
    assert event.deliveries.count() > before


# ---------------------------------------------------------------- outbox_prune


def test_pruning_deletes_finished_events_past_their_retention() -> None:
    done, waiting, failed = (
        make_delivery(make_event(created_at=days_ago(30)), state)
        for state in ("succeeded", "pending", "failed")
    )
    recent = make_delivery(make_event(created_at=days_ago(1)), "succeeded")
    assert "1 events would be deleted." in run("outbox_prune", "--dry-run")
    assert Event.objects.count() == 4
    assert "1 events deleted." in run("outbox_prune")
    assert set(Event.objects.values_list("pk", flat=True)) == {
        each.event_id for each in (waiting, failed, recent)
    }
    assert not Delivery.objects.filter(pk=done.pk).exists()


def test_a_large_pruning_is_asked_for_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_options, "ASK_ABOVE", 0)
    monkeypatch.setattr(sys, "stdin", StringIO())
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    make_event(created_at=days_ago(60))
    with pytest.raises(CommandError, match="nothing was changed"):
        run("outbox_prune")
    assert "1 events deleted." in run("outbox_prune", "--yes")
    make_event(created_at=days_ago(60))
    # As in a cron job.
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert "1 events deleted." in run("outbox_prune")


def test_pruning_an_empty_table_is_no_error() -> None:
    assert "0 events deleted." in run("outbox_prune")


def days_ago(days: int) -> Any:
    return timezone.now() - timedelta(days=days)


def state(delivery: Delivery) -> str:
    delivery.refresh_from_db()
    return delivery.state

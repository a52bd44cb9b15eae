"""`run_relay` on the command line: what it refuses, and the line that it draws."""

import os
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from relay import lifeline
from relay.process import run_relays
from relay.progress import WIDTH, Progress
from tests.helpers import flush, publish, statuses
from tests.listening import clear_broker
from tests.testapp.handlers import OTHER_QUEUE, QUEUE


@pytest.fixture
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "", "²"])
def test_a_batch_size_that_is_no_positive_number_is_refused(size):
    fact = rf"--batch-size: {size!r} is not a positive number; give 1 or more"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", f"--batch-size={size}")


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_processes_that_is_not_positive_is_refused(number):
    fact = rf"--processes: {number!r} is not a positive number; give 1 or more"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", f"--processes={number}")


@pytest.mark.django_db
def test_several_processes_on_a_database_without_passing_locks_are_refused(monkeypatch):
    # What SQLite says of itself.
    monkeypatch.setattr(connection.features, "has_select_for_update_skip_locked", False)
    fact = (
        rf"--processes 2: database 'default' \({connection.vendor}\) has no row locks .* run one relay only"
    )
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", "--processes=2")


@pytest.mark.django_db
@pytest.mark.postgres
def test_several_processes_without_a_command_line_are_refused():
    with pytest.raises(CommandError, match="--processes 2 runs this command line again, and there is none"):
        call_command("run_relay", "--drain", "--processes=2")


@pytest.mark.parametrize("wait", ["x", "", "nan", "1s"])
def test_a_poll_interval_that_is_no_number_is_refused(wait):
    fact = rf"--poll-interval: {wait!r} is not a number of seconds; give one such as 0\.5"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", f"--poll-interval={wait}")


@pytest.mark.parametrize("wait", ["-1", "0", "-0.5"])
def test_a_poll_interval_that_is_not_positive_is_refused(wait):
    fact = rf"--poll-interval: {wait!r} is not a positive number of seconds; give one such as 0\.5"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", f"--poll-interval={wait}")


@pytest.mark.parametrize("wait", ["inf", "1e300"])
def test_a_poll_interval_that_no_duration_holds_is_refused(wait):
    with pytest.raises(CommandError, match=f"--poll-interval: {wait!r}"):
        call_command("run_relay", "--drain", f"--poll-interval={wait}")


@pytest.mark.django_db
def test_a_database_that_is_not_served_is_refused_with_those_that_are():
    fact = r"database 'nope' is not served by the outbox; choose from \['default'\]"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", "--database", "nope")


@pytest.mark.django_db
def test_a_queue_that_no_handler_uses_is_refused_with_the_closest_one():
    mistyped = QUEUE.replace("default", "defualt")
    fact = f"no handler uses the queue {mistyped!r}; did you mean {QUEUE!r}"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", "--queues", OTHER_QUEUE, mistyped)


@pytest.mark.django_db
def test_a_queue_like_no_other_is_refused_with_all_that_there_are():
    with pytest.raises(CommandError, match=rf"no handler uses the queue '#'; choose from \[.*{QUEUE!r}"):
        call_command("run_relay", "--drain", "--queues", "#")


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_a_handler_uses_is_served(clean_broker):
    event = publish("test.recorded")
    call_command("run_relay", "--drain", "--queues", OTHER_QUEUE)
    assert statuses(event) == {"record": "pending", "record_all": "dispatched"}


# ---------------------------------------------------------------- progress


def drawn(total: int, *counts: int) -> str:
    """Return what a terminal is sent while so many deliveries go out, and then no more."""
    terminal = StringIO()
    progress = Progress(total, terminal)
    for count in counts:
        progress.advance(count)
    progress.finish()
    return terminal.getvalue()


def lines(text: str) -> list[str]:
    """Return the states of the line, each drawn over the one before."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    start, *states = text.rstrip("\n").split("\r")
    assert start == ""
    return states


def test_nothing_to_do_is_all_done():
    (line,) = lines(drawn(0))
    assert line.startswith("█" * WIDTH + " 0/0 deliveries, 0/s")


def test_the_last_state_is_drawn_even_if_the_one_before_was_just_drawn():
    assert "3/3 deliveries" in lines(drawn(3, 1, 1, 1))[-1]


def test_a_part_fills_a_part_of_the_bar():
    line = lines(drawn(4, 1))[-1]
    filled = WIDTH // 4
    assert line.startswith("█" * filled + "░" * (WIDTH - filled) + " 1/4 ")


def test_more_than_was_counted_raises_the_total():
    line = lines(drawn(2, 5))[-1]
    assert line.startswith("█" * WIDTH + " 5/5 ")


def test_a_shorter_line_leaves_nothing_of_a_longer_one(monkeypatch):
    now = iter([0.0, 1.0, 1.0, 1000.0])
    monkeypatch.setattr("relay.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    longer, shorter = lines(drawn(9_000, 5_000))
    assert "5,000/s" in longer
    assert "5/s" in shorter
    assert len(shorter) == len(longer)


@pytest.mark.django_db(transaction=True)
def test_a_drain_on_a_terminal_draws_its_deliveries(clean_broker):
    publish("test.recorded")
    terminal = StringIO()
    run_relays(["default"], progress_to=terminal, drain=True)
    assert "2/2 deliveries" in lines(terminal.getvalue())[-1]


@pytest.mark.django_db(transaction=True)
def test_one_of_several_processes_draws_nothing(clean_broker, monkeypatch):
    publish("test.recorded")
    with lifeline.Lifeline() as line:
        monkeypatch.setenv(lifeline.VARIABLE, str(os.dup(line.reader)))
        terminal = StringIO()
        terminal.isatty = lambda: True
        call_command("run_relay", "--drain", "--processes=2", stdout=terminal, stderr=terminal)
    assert terminal.getvalue() == ""


@pytest.mark.django_db(transaction=True)
def test_a_relay_that_does_not_end_draws_nothing(clean_broker):
    terminal = StringIO()
    run_relays(["default"], progress_to=terminal, once=True)
    assert terminal.getvalue() == ""

"""The `run_relay` command: the options that it refuses, and its progress bar."""

import logging
import os
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

import outbox
from outbox.management.commands import _console
from outbox.observability.telemetry import batch_dispatched
from outbox.registry import registry
from relay.supervision import parent_pipe
from tests.support.data_flow import clear_broker, flush, publish, states_of
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
def test_several_processes_on_a_database_without_row_locks_are_refused(monkeypatch):
    # As on SQLite.
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
def test_a_poll_interval_that_is_too_long_for_a_duration_is_refused(wait):
    with pytest.raises(CommandError, match=f"--poll-interval: {wait!r}"):
        call_command("run_relay", "--drain", f"--poll-interval={wait}")


@pytest.mark.django_db
def test_a_database_without_the_outbox_is_refused_with_a_list_of_those_that_have_it():
    fact = r"database 'nope' is not served by the outbox; choose from \['default'\]"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", "--database", "nope")


@pytest.mark.django_db
def test_a_queue_that_no_handler_uses_is_refused_with_a_suggestion():
    mistyped = QUEUE.replace("default", "defualt")
    fact = f"no handler uses the queue {mistyped!r}; did you mean {QUEUE!r}"
    with pytest.raises(CommandError, match=fact):
        call_command("run_relay", "--drain", "--queues", OTHER_QUEUE, mistyped)


@pytest.mark.django_db
def test_a_queue_without_a_similar_one_is_refused_with_a_list_of_all():
    with pytest.raises(CommandError, match=rf"no handler uses the queue '#'; choose from \[.*{QUEUE!r}"):
        call_command("run_relay", "--drain", "--queues", "#")


@pytest.mark.django_db(transaction=True)
def test_only_the_given_queues_are_served(clean_broker):
    event = publish("test.recorded")
    call_command("run_relay", "--drain", "--queues", OTHER_QUEUE)
    assert states_of(event) == {"record": "pending", "record_all": "dispatched"}


# ---------------------------------------------------------------- progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.django_db(transaction=True)
def test_a_drain_on_a_terminal_draws_a_progress_bar(clean_broker):
    publish("test.recorded")
    terminal = Terminal()
    call_command("run_relay", "--drain", stdout=StringIO(), stderr=terminal)
    assert " 2/2 deliveries" in terminal.getvalue()


@pytest.mark.django_db(transaction=True)
def test_one_of_several_processes_draws_no_progress_bar(clean_broker, monkeypatch):
    publish("test.recorded")
    with parent_pipe.ParentPipe() as pipe:
        monkeypatch.setenv(parent_pipe.VARIABLE, str(os.dup(pipe.reader)))
        terminal = Terminal()
        call_command("run_relay", "--drain", "--processes=2", stdout=terminal, stderr=terminal)
    assert terminal.getvalue() == ""


@pytest.mark.django_db(transaction=True)
def test_a_relay_without_drain_draws_no_progress_bar(clean_broker):
    terminal = Terminal()
    call_command("run_relay", "--once", stdout=StringIO(), stderr=terminal)
    assert terminal.getvalue() == ""


# ---------------------------------------------------------------- what the relay says


@pytest.mark.django_db(transaction=True)
def test_the_start_is_logged_with_the_setup_and_without_a_password(clean_broker, caplog, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "a-secret-of-the-database")
    with caplog.at_level(logging.INFO, "outbox"):
        call_command("run_relay", "--drain", "--no-listen", stdout=StringIO())
    line = next(text for text in caplog.messages if text.startswith("relay started for default"))
    assert f"version {outbox.__version__}, pid {os.getpid()}, database {connection.vendor} " in line
    assert "broker StubBroker, queues all, " in line
    assert f"{len(registry.handlers)} handlers, polling every" in line
    assert "a-secret-of-the-database" not in line


@pytest.mark.django_db(transaction=True)
def test_each_batch_is_shown_with_verbosity_2(clean_broker):
    publish("flaky.mail")
    out = StringIO()
    try:
        call_command("run_relay", "--drain", "-v", "2", stdout=out)
    finally:
        batch_dispatched.disconnect(dispatch_uid="outbox.run_relay.show_batches")
    assert re.search(r"^default: 1 delivery in [\d.]+ \w+: flaky 1$", out.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("configured", [False, True])
def test_a_project_without_logging_sees_the_log(configured, monkeypatch):
    logger = logging.getLogger("without_logging")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()] if configured else [])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(_console, "LOGGERS", (logger.name,))
    _console.log_to_console()
    assert [type(one) for one in logger.handlers] == [
        logging.NullHandler if configured else logging.StreamHandler
    ]
    assert logger.level == (logging.WARNING if configured else logging.INFO)

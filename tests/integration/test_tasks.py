"""The backend of Django's task framework, within one process: enqueue, relay, run, and read the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import django
import dramatiq
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from outbox.apps import is_outbox_backend
from outbox.contrib.tasks import OutboxBackend, OutboxTask
from outbox.contrib.tasks.framework import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from outbox.errors import InvalidPayload
from outbox.models import Delivery, Event, HandlerStats, PausedHandler, TaskAttempt
from outbox.operations.pruning import prune
from outbox.operations.replay import replay_event
from outbox.registry import registry
from outbox.testing import deliver
from relay.redelivery import Redelivery
from tests.support.data_flow import clear_broker, flush, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp import jobs
from tests.testapp.handlers import OTHER_QUEUE, QUEUE
from tests.testapp.models import Effect

with_commits = pytest.mark.django_db(transaction=True)
JOBS = jobs.__name__
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL


@pytest.fixture
def sent() -> Iterator[list[tuple[str, str, Any]]]:
    """Collect the signals of tasks: name, status and a copy of the result."""
    found: list[tuple[str, str, Any]] = []

    def collect(signal: Any, sender: type, task_result: Any, **_: Any) -> None:
        assert sender is OutboxBackend
        name = next(name for name, each in signals.items() if each is signal)
        found.append((name, str(task_result.status), copy.deepcopy(task_result)))

    signals = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    for signal in signals.values():
        signal.connect(collect)
    yield found
    for signal in signals.values():
        signal.disconnect(collect)


def run(result: Any) -> Any:
    """Dispatch and run a task in a worker until it is finished; return the refreshed result."""
    clear_broker()
    with worker():
        wait_until(lambda: is_finished(result), what=f"task {result.id} to finish")
    flush()
    return result


def is_finished(result: Any) -> bool:
    relay_all()
    result.refresh()
    return bool(result.is_finished)


# ---------------------------------------------------------------- enqueue


@pytest.mark.django_db
def test_a_call_is_an_event_with_one_delivery() -> None:
    result = jobs.add.enqueue(1, b=2)

    event = Event.objects.get()
    assert (result.id, result.status, result.enqueued_at) == (str(event.pk), READY, event.created_at)
    assert (result.args, result.kwargs, result.attempts, result.errors) == ([1], {"b": 2}, 0, [])
    assert (event.topic, event.payload) == ("task.tests.testapp.jobs.add", {"args": [1], "kwargs": {"b": 2}})
    delivery = event.deliveries.get()
    assert (delivery.handler, delivery.queue) == (f"{JOBS}.add", QUEUE)


@with_commits
def test_a_call_of_a_transaction_that_rolls_back_leaves_nothing() -> None:
    with transaction.atomic():
        jobs.add.enqueue(1)
        transaction.set_rollback(True)

    assert not Event.objects.exists()
    assert not Delivery.objects.exists()


@with_commits
def test_a_call_in_autocommit_has_a_transaction_of_its_own() -> None:
    assert not connection.in_atomic_block
    jobs.add.enqueue(1)
    assert Delivery.objects.count() == 1


@with_commits
def test_a_refused_argument_does_not_break_the_callers_transaction() -> None:
    with transaction.atomic():
        with pytest.raises(TypeError):
            jobs.echo.enqueue(object())
        with pytest.raises(InvalidPayload):
            jobs.echo.enqueue("a NUL \0")
        jobs.add.enqueue(1)
    assert Event.objects.count() == 1


@pytest.mark.django_db
def test_arguments_are_normalized_as_json() -> None:
    result = jobs.echo.enqueue((1, 2), b"text", word={"a": (3,)})
    assert (result.args, result.kwargs) == ([[1, 2], "text"], {"word": {"a": [3]}})
    assert Event.objects.get().payload == {"args": result.args, "kwargs": result.kwargs}


@pytest.mark.django_db
def test_run_after_is_the_due_time() -> None:
    due = timezone.now() + timedelta(hours=5)
    result = jobs.add.using(run_after=due).enqueue(1)

    assert Delivery.objects.get().available_at == due
    assert result.task.run_after == due
    assert jobs.add.get_result(result.id) == result
    assert deliver().succeeded == 0
    assert deliver(ahead=timedelta(hours=6)).succeeded == 1


@with_commits
def test_async_code_enqueues_and_reads_results() -> None:
    async def enqueue() -> Any:
        result = await jobs.add.aenqueue(2, 3)
        assert await jobs.add.aget_result(result.id) == result
        await result.arefresh()
        return result

    result = async_to_sync(enqueue)()
    assert run(result).return_value == 5


@pytest.mark.django_db
def test_a_queue_that_using_chooses_is_a_handler_of_its_own() -> None:
    result = jobs.add.using(queue_name=OTHER_QUEUE).enqueue(1)

    delivery = Delivery.objects.get()
    assert (delivery.queue, delivery.handler) == (OTHER_QUEUE, f"{JOBS}.add@{OTHER_QUEUE}")
    assert result.task.queue_name == OTHER_QUEUE
    assert jobs.add.get_result(result.id) == result
    deliver()
    result.refresh()
    assert result.status == SUCCESSFUL


# ---------------------------------------------------------------- runs


@with_commits
def test_a_task_runs_in_a_worker_and_returns_a_value(sent: list[tuple[str, str, Any]]) -> None:
    result = run(jobs.add.enqueue(1, b=2))

    assert (result.status, result.return_value, result.attempts, result.errors) == (SUCCESSFUL, 3, 1, [])
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    assert len(result.worker_ids) == 1
    assert Effect.objects.get().detail == {"sum": 3}
    assert [(name, status) for name, status, _ in sent] == [
        ("enqueued", READY),
        ("started", RUNNING),
        ("finished", SUCCESSFUL),
    ]
    assert {each.id for _, _, each in sent} == {result.id}
    assert sent[-1][2].return_value == 3


@with_commits
def test_async_functions_run() -> None:
    assert run(jobs.add_async.enqueue(1, 2)).return_value == 3
    assert Effect.objects.get().handler == "add_async"


@with_commits
def test_a_task_that_takes_the_context_gets_its_attempt() -> None:
    result = run(jobs.describe_context.enqueue(word="x"))
    assert result.return_value == {"attempt": 1, "id": result.id, "status": RUNNING, "word": "x"}


@with_commits
def test_an_error_is_retried_and_kept() -> None:
    result = run(jobs.fail_once.enqueue())

    assert (result.status, result.return_value, result.attempts) == (SUCCESSFUL, "done", 2)
    (error,) = result.errors
    assert error.exception_class_path == "tests.testapp.handlers.Refused"
    assert error.exception_class.__name__ == "Refused"
    assert "the first time" in error.traceback
    assert "Traceback (most recent call last)" in error.traceback
    assert result.started_at < result.last_attempted_at


@with_commits
def test_a_task_fails_when_its_retries_are_exhausted(sent: list[tuple[str, str, Any]]) -> None:
    result = run(jobs.fail.enqueue())

    assert (result.status, result.attempts, len(result.errors)) == (FAILED, 2, 2)
    assert result.finished_at is not None
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    assert [name for name, _, _ in sent] == ["enqueued", "started", "started", "finished"]
    assert (sent[-1][1], len(sent[-1][2].errors)) == (FAILED, 2)


@with_commits
def test_a_return_value_that_is_not_json_fails_the_task() -> None:
    result = run(jobs.return_object.enqueue())
    assert (result.status, result.errors[0].exception_class) == (FAILED, TypeError)


@with_commits
def test_a_transactional_task_keeps_only_the_effects_of_its_success() -> None:
    result = run(jobs.fail_after_write.enqueue("x"))

    assert (result.status, result.return_value, result.attempts, len(result.errors)) == (SUCCESSFUL, 1, 2, 1)
    assert Effect.objects.count() == 1
    assert Event.objects.get().key == "x"


@with_commits
def test_a_transactional_task_finishes_after_its_start() -> None:
    result = run(jobs.fail_after_write.enqueue("x"))
    assert result.last_attempted_at < result.finished_at


@with_commits
def test_calls_with_one_ordering_key_run_in_their_order() -> None:
    results = [jobs.add_in_order.enqueue("a", number) for number in range(4)]
    assert set(Delivery.objects.values_list("key", flat=True)) == {"a"}
    run(results[-1])
    numbers = [effect.detail["number"] for effect in Effect.objects.order_by("pk")]
    assert numbers == [0, 1, 2, 3]


@pytest.mark.django_db
def test_the_event_is_current_in_a_task() -> None:
    result = jobs.see_event.enqueue()
    deliver()
    result.refresh()
    assert result.return_value["id"] == result.id


@with_commits
def test_a_relay_keeps_the_order_of_a_task_that_it_imports() -> None:
    for number in range(3):
        jobs.add_in_order.enqueue("a", number)
    for name in [name for name, handler in registry.handlers.items() if handler.ordered]:
        registry.remove(name)

    def dispatched_states() -> list[str]:
        relay_all()
        return list(Delivery.objects.order_by("pk").values_list("state", flat=True))

    assert set(dispatched_states()) <= {"pending", "dispatched"}
    wait_until(lambda: dispatched_states() == ["dispatched", "pending", "pending"], what="the first to go")


# ---------------------------------------------------------------- the status while rows change


def dispatched(result: Any) -> Any:
    Delivery.objects.update(state="dispatched", dispatched_at=timezone.now())
    return refreshed(result)


def refreshed(result: Any) -> Any:
    result.refresh()
    return result


@pytest.mark.django_db
def test_a_dispatched_task_is_ready_until_a_worker_starts_it() -> None:
    result = jobs.add.enqueue(1)
    assert dispatched(result).status == READY

    attempt = TaskAttempt.objects.create(event_id=result.id, worker_id="host:1")
    assert refreshed(result).status == RUNNING
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value

    attempt.exception_class = "builtins.ValueError"
    attempt.save()
    assert refreshed(result).status == READY


@pytest.mark.django_db
def test_a_return_value_counts_when_the_outcome_is_confirmed() -> None:
    result = dispatched(jobs.add.enqueue(1))
    TaskAttempt.objects.create(event_id=result.id, worker_id="w", finished_at=timezone.now(), return_value=1)
    assert refreshed(result).status == RUNNING

    Delivery.objects.update(state="succeeded", finished_at=timezone.now())
    assert (refreshed(result).status, result.return_value) == (SUCCESSFUL, 1)


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["failed", "discarded"])
def test_a_task_that_never_ran_fails_with_the_reason_of_its_delivery(state: str) -> None:
    result = jobs.add.enqueue(1)
    Delivery.objects.update(state=state, error="crashed: 3 workers died", finished_at=timezone.now())

    assert refreshed(result).status == FAILED
    (error,) = result.errors
    assert error.exception_class.__name__ == "DeliveryFailed"
    assert "3 workers died" in error.traceback


# ---------------------------------------------------------------- results


@pytest.mark.django_db
def test_unknown_ids_have_no_result() -> None:
    with transaction.atomic():
        from outbox import publish

        other = publish("test.recorded")
    for unknown in (str(uuid4()), "nonsense", "", str(other.pk)):
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(unknown)


@pytest.mark.django_db
def test_a_result_of_another_task_is_refused() -> None:
    result = jobs.add.enqueue(1)
    with pytest.raises(Exception, match="does not match"):
        jobs.echo.get_result(result.id)


@pytest.mark.django_db
def test_pruning_deletes_attempts_with_their_event() -> None:
    old, new = jobs.add.enqueue(1), jobs.add.enqueue(2)
    deliver()
    assert TaskAttempt.objects.count() == 2
    aged = "01900000-0000-7000-8000-000000000000"
    Event.objects.filter(pk=old.id).update(id=aged)
    Delivery.objects.filter(event_id=old.id).update(event_id=aged)
    TaskAttempt.objects.filter(event_id=old.id).update(event_id=aged)

    assert prune("default") == 1
    assert [str(each) for each in TaskAttempt.objects.values_list("event_id", flat=True)] == [new.id]
    with pytest.raises(TaskResultDoesNotExist):
        jobs.add.get_result(aged)


@pytest.mark.django_db
def test_a_replayed_task_runs_again() -> None:
    result = jobs.add.enqueue(1)
    deliver()
    replay_event("default", UUID(result.id))
    assert refreshed(result).status == READY
    deliver()
    assert (refreshed(result).status, result.attempts) == (SUCCESSFUL, 2)


# ---------------------------------------------------------------- tasks are handlers


@with_commits
def test_runs_of_tasks_are_in_the_statistics() -> None:
    run(jobs.fail_once.enqueue())
    totals = HandlerStats.objects.filter(handler=f"{JOBS}.fail_once")
    assert sum(row.succeeded for row in totals) == 1
    assert sum(row.retried for row in totals) == 1


@with_commits
def test_a_paused_task_waits() -> None:
    PausedHandler.objects.pause(f"{JOBS}.add")
    result = jobs.add.enqueue(1)
    relay_all()
    assert Delivery.objects.get().waits_for == "resume"
    PausedHandler.objects.resume(f"{JOBS}.add")
    assert run(result).status == SUCCESSFUL


@with_commits
def test_a_task_is_imported_when_it_runs() -> None:
    result = jobs.add.enqueue(1)
    registry.remove(f"{JOBS}.add")
    assert run(result).status == SUCCESSFUL


@pytest.mark.postgres
@with_commits
def test_a_relay_that_has_not_imported_a_task_redelivers_it() -> None:
    result = jobs.add.enqueue(1)
    relay_all()
    registry.remove("tests.testapp.jobs.add")
    Delivery.objects.update(confirm_by=timezone.now() - timedelta(hours=1))

    assert Redelivery(database="default", ask=None).run() == 1
    assert Delivery.objects.get().redeliveries == 1
    assert run(result).status == SUCCESSFUL


@with_commits
def test_a_duplicate_of_a_transactional_task_leaves_no_attempt(sent: list[tuple[str, str, Any]]) -> None:
    jobs.fail_after_write.enqueue("x")
    clear_broker()
    relay_all()
    # As another message of the delivery does.
    Delivery.objects.update(state="succeeded")
    with worker() as working:
        dramatiq.get_broker().join(QUEUE)
        working.join()
    assert [name for name, _, _ in sent] == ["enqueued", "started"]
    assert not TaskAttempt.objects.exists()


@pytest.mark.django_db
def test_a_result_names_the_backend_of_its_call() -> None:
    result = jobs.add.using(backend="second").enqueue(1)
    assert result.backend == result.task.backend == "second"
    assert task_backends["second"].get_result(result.id) == result
    assert jobs.add.enqueue(1).backend == "default"


@pytest.mark.django_db
def test_the_due_time_of_a_call_is_not_that_of_the_next_call() -> None:
    if f"{JOBS}.greet" in registry.handlers:
        registry.remove(f"{JOBS}.greet")
    due = timezone.now() + timedelta(hours=1)
    # The first use declares the handler, here with a due time.
    later = jobs.greet.using(backend="default", run_after=due).enqueue("later")
    now = jobs.greet.using(backend="default").enqueue("now")

    backend = task_backends["default"]
    assert [backend.get_result(each.id).task.run_after for each in (later, now)] == [due, None]


@pytest.mark.django_db
def test_a_task_of_another_backend_runs_here_when_using_says_so() -> None:
    assert jobs.greet.enqueue("a").status == SUCCESSFUL
    result = jobs.greet.using(backend="default").enqueue("b")
    registry.remove(f"{JOBS}.greet")
    deliver()
    assert (refreshed(result).status, result.return_value) == (SUCCESSFUL, "hello b")


@pytest.mark.parametrize("name", [f"{JOBS}.plain_function", "tests.testapp.absent.job", "json.dumps"])
def test_a_name_that_is_no_task_is_no_handler(name: str) -> None:
    assert registry.find(name) is None


def test_a_module_that_cannot_be_imported_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_jobs.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.find("broken_jobs.job") is None
    assert registry.find("broken_jobs.job") is None
    (record,) = caplog.records
    assert "absent_package" in record.getMessage()


# ---------------------------------------------------------------- declarations


def test_the_backend_states_its_features() -> None:
    backend = task_backends["default"]
    assert isinstance(backend, OutboxBackend)
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert not backend.supports_priority


async def read_async() -> None:
    """Be the function of a task."""


def with_word(word: str) -> None:
    """Be the function of a task."""


def make_local_function() -> Callable[[], None]:
    def local() -> None:
        """Be the function of a task."""

    return local


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("priority", {"func": with_word, "priority": 5}),
        ("not valid for backend", {"func": with_word, "queue_name": "unknown"}),
        ("module level", {"func": make_local_function()}),
        ("context", {"func": with_word, "takes_context": True}),
        ("'wrd' is not a parameter", {"func": with_word, "key": "wrd"}),
        ("needs key=", {"func": with_word, "ordered": True}),
        ("async", {"func": read_async, "transactional": True}),
        ("'max_retries' is 'many'", {"func": with_word, "max_retries": "many"}),
        ("must not be negative", {"func": with_word, "max_retries": -1}),
    ],
)
def test_a_task_that_cannot_run_is_refused(fault: str, options: dict[str, Any]) -> None:
    task = {"queue_name": QUEUE, "priority": 0, "backend": "default", "run_after": None, **options}
    message = fault.replace("'wrd'", "key='wrd'")
    with pytest.raises(InvalidTask, match=message):
        OutboxTask(**task)


@pytest.mark.skipif(not settings.USE_TZ, reason="the times of such a project are naive")
def test_a_naive_run_after_is_refused() -> None:
    with pytest.raises(InvalidTask, match="aware"):
        jobs.add.using(run_after=datetime(2030, 1, 1))


def test_options_of_a_task_are_options_of_its_handler() -> None:
    OutboxTask(
        func=with_word, queue_name=QUEUE, priority=0, backend="default", run_after=None,
        key="word", ordered=True, transactional=True, max_retries=5,
    )  # fmt: skip
    handler = registry.get(f"{__name__}.with_word")
    try:
        assert (handler.ordered, handler.transactional, handler.queue) == (True, True, QUEUE)
        # The option of the task, and the default of the backend.
        assert handler.actor.options["max_retries"] == 5
        assert handler.actor.options["min_backoff"] == 10
    finally:
        registry.remove(handler.name)


@pytest.mark.skipif((6, 0) <= django.VERSION < (6, 1), reason="Django 6.0 passes no options to a backend")
def test_the_decorator_takes_the_options_of_the_outbox() -> None:
    decorate: Any = task
    made = decorate(queue_name=QUEUE, key="word", ordered=True, max_retries=5)(with_word)
    try:
        assert isinstance(made, OutboxTask)
        assert (made.key, made.ordered, made.max_retries) == ("word", True, 5)
        assert registry.get(f"{__name__}.with_word").ordered
    finally:
        registry.remove(f"{__name__}.with_word")


class Derived(OutboxBackend):
    """A backend that a project derives from the outbox's."""


def test_a_derived_backend_is_one_of_the_outbox() -> None:
    assert is_outbox_backend(f"{__name__}.Derived")
    assert not is_outbox_backend(f"{settings.TASK_FRAMEWORK}.backends.dummy.DummyBackend")
    assert not is_outbox_backend("tests.absent.Backend")


def changed(**backend: Any) -> Any:
    return override_settings(
        TASKS={"default": {"BACKEND": "outbox.contrib.tasks.OutboxBackend", "QUEUES": [QUEUE], **backend}}
    )


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"max_retires": 3}, "'max_retires' is not an option; did you mean 'max_retries'?"),
        ({"ordered": "yes"}, "'ordered' is 'yes'; it must be of type bool"),
        ({"database": "elsewhere"}, "'database' is 'elsewhere', which OUTBOX['DATABASES'] lacks"),
        ({"tasks": []}, "'tasks' is []; it must be of type dict"),
        ({"tasks": {f"{JOBS}.add": 3}}, f"'tasks'['{JOBS}.add'] is 3; it must be a dict"),
        ({"tasks": {f"{JOBS}.ad": {}}}, f"'tasks'['{JOBS}.ad'] cannot be imported as a task"),
        ({"tasks": {f"{JOBS}.add": {"kee": "a"}}}, "'kee' is not an option; did you mean 'key'?"),
    ],
)  # fmt: skip
def test_wrong_options_are_errors_of_the_check(options: dict[str, Any], fault: str) -> None:
    with changed(OPTIONS=options):
        (error,) = task_backends["default"].check()
    assert error.id == "outbox.E009"
    assert fault in error.msg


@pytest.mark.parametrize("queues", [[], ["no spaces"]])
def test_wrong_queues_are_errors_of_the_check(queues: list[str]) -> None:
    with changed(QUEUES=queues):
        (error,) = task_backends["default"].check()
    assert error.id == "outbox.E010"


def test_the_checks_pass_for_right_options() -> None:
    assert task_backends["default"].check() == []

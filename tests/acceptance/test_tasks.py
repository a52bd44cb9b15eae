"""Tasks of Django's task framework over three processes, with both brokers."""

from __future__ import annotations

import pytest
from django.db import transaction

from outbox.contrib.tasks.framework import TaskResultStatus
from outbox.models import TaskAttempt
from tests.support.processes import wait_until
from tests.testapp import jobs
from tests.testapp.models import Effect

from .stage import relay, wait_for_states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def test_tasks_of_a_module_that_no_app_discovers_run(broker_env: dict[str, str]) -> None:
    with relay(broker_env), worker(broker_env):
        with transaction.atomic():
            jobs.add.enqueue(1)
            transaction.set_rollback(True)
        with transaction.atomic():
            results = [jobs.add.enqueue(2, 3), jobs.fail_once.enqueue(), jobs.fail_after_write.enqueue("w")]
        results += [jobs.add_async.enqueue(4, 5), jobs.fail.enqueue()]
        wait_for_states(succeeded=4, failed=1)
    for result in results:
        result.refresh()
    *succeeded, failed = results
    assert [result.return_value for result in succeeded] == [5, "done", 1, 9]
    assert [result.attempts for result in results] == [1, 2, 2, 1, 2]
    assert failed.status == TaskResultStatus.FAILED
    assert [error.exception_class.__name__ for error in failed.errors] == ["Refused", "Refused"]
    assert sorted(Effect.objects.values_list("handler", "key")) == [
        ("add", "2"),
        ("add_async", "4"),
        ("fail_after_write", "w"),
    ]
    # One worker process.
    assert len({worker_id for result in results for worker_id in result.worker_ids}) == 1


@pytest.mark.redis
def test_the_status_is_running_while_a_worker_runs_a_task(redis_env: dict[str, str]) -> None:
    with relay(redis_env), worker(redis_env):
        result = jobs.wait_for_effect.enqueue("go")
        wait_until(lambda: TaskAttempt.objects.exists(), what="the task to start")
        wait_for_states(dispatched=1)
        result.refresh()
        assert (result.status, result.attempts) == (TaskResultStatus.RUNNING, 1)
        Effect.objects.create(handler="go")
        wait_for_states(succeeded=1)
    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL

"""The backend of Django's task framework as a user's type checker sees it: mypy checks this file."""

from __future__ import annotations

from typing import assert_type

from django.tasks import task

from outbox.contrib.tasks import OutboxBackend, OutboxTask


@task(queue_name="mail")
def send_receipt(order_id: int) -> str:
    return f"receipt {order_id}"


def charge(order_id: int) -> None:
    """Be the function of a task."""


def use(backend: OutboxBackend) -> None:
    result = send_receipt.enqueue(7)
    assert_type(result.return_value, str)
    send_receipt.enqueue("seven")  # type: ignore[arg-type]
    assert_type(backend.database, str)
    own = OutboxTask(func=charge, key="order_id", ordered=True, transactional=True, max_retries=5)
    assert_type(own.key, str | None)
    OutboxTask(func=charge, ordered="yes")  # type: ignore[arg-type]
    OutboxTask(func=charge, order=True)  # type: ignore[call-arg]

"""Async handlers: their confirmations, and Django's async guard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq.middleware import AsyncIO

import outbox
from outbox.models import HandlerStats
from outbox.registry import registry
from outbox.worker import greenlets
from tests.support.data_flow import clear_broker, finish, flush, publish, relay_all, worker
from tests.testapp.handlers import QUEUE


@pytest.fixture
def ran() -> Iterator[list[Any]]:
    """Declare an async handler, and return the payloads of its runs."""
    ran: list[Any] = []

    @outbox.handler("async.*", queue_name=QUEUE, name="async_one", max_retries=0)
    async def async_one(event: Any) -> None:
        ran.append(event.payload)
        if event.payload == "bad":
            raise ValueError("of a coroutine")

    clear_broker()
    yield ran
    registry.remove("async_one")
    flush()
    clear_broker()


@pytest.mark.django_db(transaction=True)
def test_async_handlers_are_confirmed(ran: list[Any]) -> None:
    good, bad = publish("async.good", "good"), publish("async.bad", "bad")
    relay_all()
    with worker():
        assert finish(good) == {"async_one": "succeeded"}
        assert finish(bad) == {"async_one": "failed"}
    flush()
    assert sorted(ran) == ["bad", "good"]
    counts = HandlerStats.objects.merged()["async_one"]
    assert (counts.succeeded, counts.failed) == (1, 1)


@pytest.mark.parametrize(
    ("patched", "middleware", "allowed"),
    [(True, [AsyncIO()], "true"), (False, [AsyncIO()], None), (True, [], None)],
    ids=["gevent and AsyncIO", "threads", "no AsyncIO"],
)
def test_the_async_guard_is_off_in_workers_whose_greenlets_share_the_thread_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, patched: bool, middleware: list[Any], allowed: str | None
) -> None:
    monkeypatch.setitem(os.environ, greenlets.ALLOW_ASYNC_UNSAFE, "")
    del os.environ[greenlets.ALLOW_ASYNC_UNSAFE]
    gevent = SimpleNamespace(is_module_patched=lambda name: patched)
    monkeypatch.setitem(greenlets.sys.modules, "gevent.monkey", gevent)  # type: ignore[attr-defined]
    broker: Any = SimpleNamespace(middleware=middleware)
    greenlets.allow_database_beside_event_loop(broker)
    assert os.environ.get(greenlets.ALLOW_ASYNC_UNSAFE) == allowed

"""The fetched messages of one queue in one process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from outbox.brokers.local_queue import LocalQueue


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def local(clock: SimpleNamespace) -> LocalQueue:
    return LocalQueue(clock=lambda: clock.now)


def test_a_fetched_message_counts_until_it_has_run(local: LocalQueue) -> None:
    local.start(["a", "b"])
    assert len(local) == 2
    local.finish("a", ack=True)
    assert (len(local), local.acks()) == (1, ["a"])


def test_an_acknowledgement_waits_until_redis_has_confirmed_it(local: LocalQueue) -> None:
    for one in "abc":
        local.finish(one, ack=True)
    sent = local.acks()
    local.finish("d", ack=True)
    assert local.acks() == ["a", "b", "c", "d"]
    local.confirm_acks(sent)
    assert local.acks() == ["d"]


def test_a_message_that_returns_to_the_queue_needs_no_acknowledgement(
    local: LocalQueue, clock: SimpleNamespace
) -> None:
    local.start(["a"])
    clock.now += 60
    local.forget(["a"])
    assert (len(local), local.acks()) == (0, [])
    local.start(["b"])
    clock.now += 0.001
    local.finish("b", ack=True)
    assert local.are_short, "the message that did not run was counted"


def test_messages_are_lost_if_redis_counts_them_and_this_process_has_none(local: LocalQueue) -> None:
    local.start(["running", "finished"])
    local.finish("finished", ack=True)
    # Also while the acknowledgement is being sent.
    assert local.acks() == ["finished"]
    assert local.lost(["running", "finished", "lost"]) == ["lost"]


@pytest.mark.parametrize(("took_s", "short"), [(0.009, True), (0.011, False)])
def test_messages_are_short_below_ten_milliseconds(
    local: LocalQueue, clock: SimpleNamespace, took_s: float, short: bool
) -> None:
    assert not local.are_short
    local.start(["a"])
    clock.now += took_s
    local.finish("a", ack=True)
    assert local.are_short is short


def test_the_wait_for_a_thread_does_not_count_as_a_message_s_time(
    local: LocalQueue, clock: SimpleNamespace
) -> None:
    local.threads = 8
    local.start([str(number) for number in range(64)])
    # Eight threads take 8 ms for each message: the last ones finish after 64 ms.
    for first in range(0, 64, 8):
        clock.now += 0.008
        for number in range(first, first + 8):
            local.finish(str(number), ack=True)
    assert local.are_short

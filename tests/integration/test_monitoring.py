"""`@monitor` and `monitor_signal`: statistics of ordinary functions."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from django.db.models import Sum
from django.dispatch import Signal

import outbox
from outbox import monitor, monitor_signal
from outbox.confirmations import FlushPolicy, confirmations
from outbox.errors import RegistrationError
from outbox.models import HandlerStats
from outbox.testing import deferred_counts, flush_counts
from tests.conftest import ROOT
from tests.support.processes import wait_until
from tests.testapp.handlers import record

pytestmark = pytest.mark.django_db

HERE = f"{__name__}."


@pytest.fixture(autouse=True)
def defer_counts():
    with deferred_counts():
        yield


def counts() -> dict[str, tuple[int, int]]:
    """Return successes and errors by name."""
    flush_counts()
    # Two flushes may write rows of different minutes.
    sums = HandlerStats.objects.values_list("handler").annotate(Sum("succeeded"), Sum("failed"))
    return {name: (succeeded, failed) for name, succeeded, failed in sums}


@monitor
def greet(name):
    """Say hello."""
    if not name:
        raise ValueError("nobody to greet")
    return f"hello {name}"


# ---------------------------------------------------------------- functions


def test_calls_count_by_success_and_error():
    assert greet("you") == "hello you"
    with pytest.raises(ValueError, match="nobody"):
        greet("")
    assert counts() == {f"{HERE}greet": (1, 1)}


def test_a_monitored_function_keeps_its_name_and_docstring():
    assert (greet.__name__, greet.__doc__) == ("greet", "Say hello.")


def test_a_call_is_timed():
    @monitor(name="nap")
    def nap():
        time.sleep(0.02)

    nap()
    flush_counts()
    stats = HandlerStats.objects.merged()["nap"]
    assert 0.02 <= stats.duration_max_s == stats.duration_total_s < 5
    assert sum(stats.histogram) == 1


def test_counts_of_two_flushes_add_up():
    greet("you")
    flush_counts()
    greet("you")
    assert counts() == {f"{HERE}greet": (2, 0)}


def test_a_coroutine_is_timed_until_it_ends():
    @monitor(name="fetch")
    async def fetch(fail):
        await asyncio.sleep(0.02)
        if fail:
            raise ValueError

    assert asyncio.iscoroutinefunction(fetch)
    asyncio.run(fetch(False))
    with pytest.raises(ValueError):  # noqa: PT011  # it has no message
        asyncio.run(fetch(True))
    assert counts() == {"fetch": (1, 1)}
    (nap_counts,) = HandlerStats.objects.merged().values()
    assert nap_counts.duration_max_s >= 0.02


def test_methods_and_static_and_class_methods_are_monitored():
    class Shop:
        @monitor(name="method")
        def method(self):
            return self

        @classmethod
        @monitor(name="class method")
        def of_class(cls):
            return cls

        @staticmethod
        @monitor(name="static method")
        def static():
            return None

    shop = Shop()
    assert shop.method() is shop
    assert shop.of_class() is Shop
    assert Shop.static() is None
    assert counts() == dict.fromkeys(("method", "class method", "static method"), (1, 0))


def test_concurrent_threads_lose_no_count():
    threads = [threading.Thread(target=lambda: [greet("you") for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts() == {f"{HERE}greet": (2000, 0)}


def test_with_stats_off_no_call_is_counted(settings):
    settings.OUTBOX = {"STATS": False}
    greet("you")
    assert counts() == {}


def test_an_error_of_the_count_does_not_fail_the_call(monkeypatch, caplog):
    def refuse(*args):
        raise RuntimeError("no more threads")

    monkeypatch.setattr(confirmations, "count", refuse)
    assert greet("you") == "hello you"
    assert "could not be counted" in caplog.text


@pytest.mark.parametrize("nonsense", [record, 7, classmethod(greet), staticmethod(greet)])
def test_handlers_and_objects_that_are_no_functions_are_refused(nonsense):
    with pytest.raises(RegistrationError):
        monitor(nonsense)


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_an_empty_or_too_long_name_is_refused(name):
    with pytest.raises(RegistrationError, match="between 1 and 255"):
        monitor(name=name)(len)


def test_a_monitored_receiver_can_have_a_condition():
    calls = []

    @outbox.signal_condition(lambda sender, amount, **kwargs: amount > 5)
    @monitor(name="large")
    def large(sender, amount, **kwargs):
        calls.append(amount)

    signal = Signal()
    signal.connect(large)
    monitor_signal(signal)
    for amount in (1, 10):
        signal.send(sender=None, amount=amount)
    assert calls == [10]
    assert counts() == {"large": (1, 0)}


# ---------------------------------------------------------------- whole signals


def first(sender, log, **kwargs):
    log.append("first")


def second(sender, log, **kwargs):
    log.append("second")
    if len(log) > 2:
        raise ValueError("too long")


class Listener:
    def hear(self, sender, log, **kwargs):
        log.append("method")


async def later(sender, log, **kwargs):
    await asyncio.sleep(0)
    log.append("async")


def sent(signal, **options):
    log = []
    signal.send(sender=None, log=log, **options)
    return log


def test_monitored_receivers_keep_their_order():
    signal, listener = Signal(), Listener()
    for receiver in (second, listener.hear, first, later):
        signal.connect(receiver)
    assert monitor_signal(signal) == 4
    assert sent(signal) == ["second", "method", "first", "async"]
    names = ("second", "Listener.hear", "first", "later")
    assert counts() == {f"{HERE}{name}": (1, 0) for name in names}


def test_receivers_are_timed_only_once():
    signal = Signal()
    signal.connect(first)
    signal.connect(greet)
    assert [monitor_signal(signal), monitor_signal(signal)] == [1, 0]


def test_a_receiver_that_connects_later_needs_another_call():
    signal = Signal()
    signal.connect(first)
    monitor_signal(signal)
    signal.connect(second)
    assert monitor_signal(signal) == 1
    sent(signal)
    assert counts() == {f"{HERE}first": (1, 0), f"{HERE}second": (1, 0)}


def test_monitored_receivers_can_be_disconnected():
    signal, listener = Signal(), Listener()
    signal.connect(first)
    signal.connect(listener.hear)
    signal.connect(second, dispatch_uid="second")
    monitor_signal(signal)
    assert signal.disconnect(first)
    assert signal.disconnect(listener.hear)
    assert signal.disconnect(dispatch_uid="second")
    assert sent(signal) == []


def test_monitored_receivers_do_not_connect_twice():
    signal = Signal()
    signal.connect(first)
    monitor_signal(signal)
    signal.connect(first)
    assert sent(signal) == ["first"]


@pytest.mark.parametrize("caching", [False, True])
def test_weak_references_stay_weak(caching):
    signal, listener = Signal(use_caching=caching), Listener()
    signal.connect(listener.hear)
    monitor_signal(signal)
    assert signal.has_listeners(str)
    del listener
    gc.collect()
    assert not signal.has_listeners(str)


def test_a_strong_reference_stays_strong():
    signal = Signal()
    signal.connect(Listener().hear, weak=False)
    monitor_signal(signal)
    gc.collect()
    assert sent(signal) == ["method"]


def test_a_monitored_receiver_keeps_its_sender():
    signal = Signal()
    signal.connect(first, sender=str)
    monitor_signal(signal)
    assert sent(signal) == []
    assert [response for _receiver, response in signal.send(sender=str, log=[])] == [None]


def test_an_error_of_a_receiver_is_counted_and_raised(caplog):
    signal = Signal()
    signal.connect(second)
    monitor_signal(signal)
    with caplog.at_level(logging.ERROR, "django.dispatch"):
        ((_receiver, error),) = signal.send_robust(sender=None, log=["a", "b"])
    assert isinstance(error, ValueError)
    assert "Error calling second" in caplog.text
    assert counts() == {f"{HERE}second": (0, 1)}


def test_receivers_are_timed_in_async_sends():
    signal, log = Signal(), []
    signal.connect(later)
    monitor_signal(signal)
    asyncio.run(signal.asend(sender=None, log=log))
    assert log == ["async"]
    assert counts() == {f"{HERE}later": (1, 0)}


def test_the_outboxs_own_receivers_are_not_timed():
    from tests.testapp.signals import order_paid

    assert monitor_signal(order_paid) == 0


# ---------------------------------------------------------------- processes


@pytest.mark.django_db(transaction=True)
def test_the_thread_writes_counts_after_the_interval(monkeypatch):
    monkeypatch.setattr(confirmations, "policy", FlushPolicy(count_interval_s=0.01))
    monkeypatch.setattr(confirmations, "defers_counts", False)
    try:
        greet("you")
        wait_until(HandlerStats.objects.exists, what="the count to be written")
        greet("you")
        wait_until(
            lambda: HandlerStats.objects.aggregate(all=Sum("succeeded")) == {"all": 2},
            what="the second count to be written",
        )
    finally:
        confirmations.close()


@pytest.mark.django_db(transaction=True)
def test_calls_are_counted_after_confirmations_were_closed(monkeypatch):
    monkeypatch.setattr(confirmations, "policy", FlushPolicy(count_interval_s=0.01))
    greet("you")
    confirmations.close()
    monkeypatch.setattr(confirmations, "defers_counts", False)
    try:
        greet("you")
        wait_until(HandlerStats.objects.exists, what="the counts to be written")
    finally:
        confirmations.close()
    assert counts() == {f"{HERE}greet": (2, 0)}


def test_monitor_can_be_imported_before_the_apps_are_loaded():
    source = "import outbox; outbox.monitor; outbox.monitor_signal"
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60, cwd=ROOT, env=env)


SCRIPT = """
import os, sys, django
django.setup()
from outbox import monitor

@monitor(name="exiting")
def work():
    pass

"""


def run(script: str, env: dict[str, str]) -> float:
    """Run a process until it exits; return its duration in seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", SCRIPT + script], env=env, check=True, timeout=60)
    return time.monotonic() - started


@pytest.mark.django_db(transaction=True)
def test_a_process_that_exits_loses_no_count(process_env):
    run("work()", process_env)
    assert counts() == {"exiting": (1, 0)}


@pytest.mark.django_db(transaction=True)
def test_a_forked_process_counts_for_itself(process_env):
    run("work()\nif os.fork():\n    os.wait()\nelse:\n    work()\n    sys.exit()", process_env)
    assert counts() == {"exiting": (2, 0)}


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_process_exits_although_its_database_does_not_answer(process_env):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        idle_s = run("", process_env | {"DATABASE_URL": url})
        assert run("work()", process_env | {"DATABASE_URL": url}) < idle_s + 10

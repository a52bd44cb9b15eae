"""The demo as a new user runs it, and the check that decides its exit status."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pika
import pika.exceptions
import psycopg
import pytest
import redis

from example.demo.findings import Effect, committed_orders, office, rolled_back_orders, spending, stock
from example.demo.options import parse
from tests.support.processes import Process, wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 240
QUEUES = ("mail", "stock", "analytics", "office", "default")
MANY = ("--orders", "60", "--rolled-back", "10")

MAIL, INVOICE = Effect(7, "mail", "We have your order"), Effect(7, "invoice")


def demo(*arguments: str, **env: str) -> Process:
    """Prepare the demo with its own servers, regardless of the servers of the tests."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "DRAMATIQ_BROKER_URL", "DJANGO_SETTINGS_MODULE"}
    }
    return Process(
        sys.executable,
        *("-m", "example.demo", "--orders", "12", "--rolled-back", "4", "--port", "0", *arguments),
        env=inherited | {"PYTHONUNBUFFERED": "1"} | env,
        cwd=ROOT,
    )


def assert_check_passed(output: str, *, committed: int = 8, rolled_back: int = 4) -> None:
    """Assert the findings of the check in the output."""
    assert f"PASS  {committed} committed orders" in output
    assert f"PASS  {rolled_back} rolled-back orders: 0 rows and 0 effects left behind" in output
    assert "PASS  12 products: stock adds up for 12" in output
    assert "PASS  25 customers: spending adds up for 25" in output
    assert "PASS  The office: 5 entries expected, 5 found, 0 surplus" in output
    assert "Check passed." in output


def has_ended(pid: int) -> bool:
    """Return whether a process has ended; a zombie counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children_of(parent: int) -> list[int]:
    """Return the ids of the running child processes of a process."""
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in path.read_text().split()]


def names_in_broker(url: str, name: str) -> list[str]:
    """Return the keys or queues of the demo in the broker."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return [key.decode() for key in client.scan_iter(f"{name}*")]
    queues = [f"{name}_{queue}{suffix}" for queue in QUEUES for suffix in ("", ".DQ", ".XQ")]
    return [queue for queue in queues if queue_exists(url, queue)]


def queue_exists(url: str, name: str) -> bool:
    """Return whether RabbitMQ has a queue."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        try:
            connection.channel().queue_declare(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


# ---------------------------------------------------------------- the whole demo


@pytest.mark.slow
@pytest.mark.postgres
def test_the_demo_passes_its_check_and_ends() -> None:
    with demo("--exit", *MANY) as process:
        assert process.wait(DEADLINE_S) == 0
        assert_check_passed(process.output, committed=50, rolled_back=10)
        assert "example.shop.handlers.count_in_analytics" in process.output
        assert "example.shop.receivers.add_up_spending" in process.output


@pytest.mark.slow
@pytest.mark.postgres
def test_the_demo_removes_its_database_and_names_from_shared_servers(
    postgres_url: str, broker_url: str
) -> None:
    with demo("--exit", DATABASE_URL=postgres_url, DRAMATIQ_BROKER_URL=broker_url) as process:
        name = process.wait_for_line(r"names in the broker, are (outbox_demo_\w+)", DEADLINE_S).group(1)
        assert process.wait(DEADLINE_S) == 0
        assert_check_passed(process.output)
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone()
        assert found is None
    assert not names_in_broker(broker_url, name)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
def test_the_demo_without_a_broker_serves_the_shop_and_stops_its_processes(postgres_url: str) -> None:
    with demo(DATABASE_URL=postgres_url, DRAMATIQ_BROKER_URL="stub://") as process:
        address = process.wait_for_line(r"The shop +(http://\S+)", DEADLINE_S).group(1)
        assert "share one process" in process.output
        assert_check_passed(process.output)
        with urllib.request.urlopen(f"{address}office/", timeout=30) as page:
            assert b"Pending \xe2\x86\x92 Paid" in page.read()
        started = children_of(process.pid)
        assert len(started) >= 3
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        wait_until(lambda: all(map(has_ended, started)), what="the demo's processes to end")


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
def test_the_processes_of_a_killed_demo_end() -> None:
    with demo(*MANY) as process:
        process.wait_for_line(r"^Placing orders: ", DEADLINE_S)
        logs = process.wait_for_line(r"Logs are in (\S+)\.$").group(1)
        started = children_of(process.pid)
        process.kill()
        shutil.rmtree(logs)
        wait_until(lambda: all(map(has_ended, started)), what="the guards to end the demo's processes")


def test_the_demo_refuses_more_roll_backs_than_orders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(["--orders", "5", "--rolled-back", "6"])
    assert refused.value.code == 2
    assert "--rolled-back 6 is not between 0 and --orders 5" in capsys.readouterr().err


# ---------------------------------------------------------------- the check


def test_the_expected_effects_pass() -> None:
    finding = committed_orders(Counter([MAIL, INVOICE]), Counter([INVOICE, MAIL]), orders=1)
    assert finding.passed
    assert list(finding.lines()) == [
        "PASS  1 committed orders: 2 effects expected, 2 found, 0 missing, 0 surplus"
    ]


def test_a_missing_effect_fails() -> None:
    finding = committed_orders(Counter([MAIL, INVOICE]), Counter([INVOICE]), orders=1)
    assert not finding.passed
    assert finding.examples == ("missing: order 7: mail We have your order (1 times)",)


def test_a_repeated_effect_fails() -> None:
    finding = committed_orders(Counter([MAIL]), Counter([MAIL, MAIL]), orders=1)
    assert not finding.passed
    assert finding.examples == ("surplus: order 7: mail We have your order (1 times)",)


def test_an_effect_of_a_rolled_back_order_fails() -> None:
    finding = rolled_back_orders({7}, [MAIL, Effect(8, "invoice")], rows=0)
    assert not finding.passed
    assert finding.examples == ("order 7: mail We have your order",)


def test_a_row_of_a_rolled_back_order_fails() -> None:
    assert not rolled_back_orders({7}, [], rows=1).passed
    assert rolled_back_orders({7}, [], rows=0).passed


def test_wrong_stock_fails() -> None:
    assert stock({"Mug": 3}, {"Mug": 3}).passed
    finding = stock({"Mug": 3, "Pan": 1}, {"Mug": 4})
    assert finding.examples == (
        "Mug: 4 in stock, should be 3",
        "Pan: None in stock, should be 1",
    )
    assert not finding.passed


def test_wrong_spending_fails() -> None:
    assert spending({"Ada": Decimal(5)}, {"Ada": Decimal("5.00")}).passed
    finding = spending({"Ada": Decimal(5)}, {"Ada": Decimal(4)})
    assert finding.examples == ("Ada: has spent 4, should be 5",)
    assert not finding.passed


def test_a_missing_or_surplus_entry_of_the_office_fails() -> None:
    assert office(Counter(["a"]), Counter(["a"])).passed
    finding = office(Counter(["a", "b"]), Counter(["b", "b"]))
    assert finding.examples == ("missing: a", "surplus: b")
    assert not finding.passed


def test_a_finding_shows_at_most_five_examples() -> None:
    promised = Counter(Effect(number, "invoice") for number in range(30))
    lines = list(committed_orders(promised, Counter(), orders=30).lines())
    assert len(lines) == 7
    assert lines[-1].strip() == "… and 25 more"

"""The metrics for Prometheus: gauges of the tables, and counters that only grow."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.db.models import F
from django.test import RequestFactory, override_settings
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from outbox.contrib.prometheus import OutboxCollector, collector, metrics_view, views
from outbox.contrib.prometheus.run_metrics import buckets
from outbox.models import HandlerStats, PausedHandler, Tally
from outbox.models.histogram import BUCKETS
from outbox.operations.health import get_health
from outbox.operations.health_report import Health
from outbox.operations.recent_health import RecentHealth
from outbox.operations.run_counts import RunCounts
from tests.support.factories import make_delivery, make_relay
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db


class Metrics:
    """The samples of an exposition, by name and labels."""

    def __init__(self, text: str) -> None:
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        self.label_values = {value for _, labels in self._samples for _name, value in labels}
        self.names = {name for name, _ in self._samples}

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples[name, frozenset({"database": "default", **labels}.items())]


class Scraper:
    """Scrapes one collector again and again, as Prometheus does, without kept reports."""

    def __init__(self, measure: Any = get_health) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(OutboxCollector(health=RecentHealth(max_age_s=0, measure=measure)))

    def __call__(self) -> Metrics:
        return Metrics(generate_latest(self._registry).decode())


def add_runs(handler: str = "record", **counts: int) -> None:
    """Write the counts of runs of 20 ms each, as a worker does."""
    tally = Tally()
    for result, number in counts.items():
        for _ in range(number):
            tally.count(result, 0.02)
    HandlerStats.objects.add({handler: tally})


def test_the_backlog_is_counted_by_handler_and_state() -> None:
    for state in ("pending", "pending", "dispatched", "failed", "succeeded"):
        make_delivery(handler="record", queue=QUEUE, state=state)
    make_delivery(handler="record", queue=QUEUE, state="pending", waits_for="resume")
    make_delivery(handler="gone.for_ever", state="failed")
    scraped = Scraper()()
    name = "outbox_backlog_deliveries"
    counts = {
        state: scraped(name, queue=QUEUE, handler="record", state=state)
        for state in ("pending", "waiting", "dispatched", "failed")
    }
    assert counts == {"pending": 2, "waiting": 1, "dispatched": 1, "failed": 1}
    assert scraped(name, queue="(others)", handler="(others)", state="failed") == 1


def test_labels_name_declared_handlers_only() -> None:
    make_delivery(handler="gone.for_ever", key="secret-key", state="failed", error="secret error")
    make_delivery(handler="gone.for_ever", key="secret-key", waits_for="key")
    make_delivery(handler="gone.for_ever", queue="gone_queue", state="dispatched")
    HandlerStats.objects.add({"gone.for_ever": Tally(succeeded=1)})
    scraped = Scraper()()
    assert scraped("outbox_blocked_keys", handler="(others)") == 1
    assert not [value for value in scraped.label_values if "gone" in value or "secret" in value]


def test_the_gauges_are_those_of_the_health_report() -> None:
    make_relay()
    make_relay(kind="worker", queues=QUEUE, threads=8)
    PausedHandler.objects.pause("record", reason="maintenance")
    make_delivery(handler="record", queue=QUEUE, state="dispatched")
    scraped = Scraper()()
    assert scraped("outbox_up") == 1
    assert scraped("outbox_processes_alive", kind="relay") == 1
    assert scraped("outbox_processes_alive", kind="worker") == 1
    assert scraped("outbox_queue_threads", queue=QUEUE) == 8
    assert scraped("outbox_paused_handlers") == 1
    verdicts = {one: scraped("outbox_verdict", verdict=one) for one in ("ok", "warning", "trouble")}
    assert sum(verdicts.values()) == verdicts[get_health().verdict] == 1
    assert scraped("outbox_problems", kind="no_relay") == 0


@pytest.mark.postgres
def test_dead_rows_are_those_of_the_statistics_of_postgresql() -> None:
    assert Scraper()()("outbox_dead_rows", table="outbox_delivery") >= 0


def test_a_database_that_does_not_answer_has_only_one_metric(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_database: str) -> Health:
        raise OperationalError("no route")

    scraped = Scraper(fail)()
    assert scraped.names == {"outbox_up"}
    assert scraped("outbox_up") == 0
    assert "no metrics of database 'default': no route" in caplog.text


# ---------------------------------------------------------------- counters


def test_counters_begin_at_zero_and_grow_with_the_runs() -> None:
    add_runs(succeeded=5)
    scrape = Scraper()
    assert scrape()("outbox_runs_total", handler="record", result="succeeded") == 0
    add_runs(succeeded=2, failed=1)
    scraped = scrape()
    assert scraped("outbox_runs_total", handler="record", result="succeeded") == 2
    assert scraped("outbox_runs_total", handler="record", result="failed") == 1
    assert scraped("outbox_run_duration_seconds_count", handler="record") == 3
    assert scraped("outbox_run_duration_seconds_sum", handler="record") == pytest.approx(0.06)
    assert scrape()("outbox_runs_total", handler="record", result="succeeded") == 2


def test_runs_of_undeclared_handlers_are_not_counted() -> None:
    scrape = Scraper()
    scrape()
    add_runs("gone.for_ever", succeeded=1)
    assert not [value for value in scrape().label_values if "gone" in value]


def test_counters_do_not_shrink_when_the_statistics_are_emptied() -> None:
    scrape = Scraper()
    scrape()
    add_runs(succeeded=3)
    assert scrape()("outbox_runs_total", handler="record", result="succeeded") == 3
    HandlerStats.objects.all().delete()
    add_runs(succeeded=1)
    assert scrape()("outbox_runs_total", handler="record", result="succeeded") == 4


def test_counts_of_a_past_minute_that_are_written_late_are_added_once() -> None:
    now = [0.0]
    counts = RunCounts("default", clock=lambda: now[0])
    add_runs(succeeded=1)
    HandlerStats.objects.update(bucket=F("bucket") - timedelta(minutes=10))
    counts.update()
    HandlerStats.objects.update(succeeded=4)
    for _ in range(2):
        now[0] += 30
        assert counts.update()["record"].succeeded == 3


def test_runs_between_two_rare_scrapes_are_counted() -> None:
    now = [0.0]
    counts = RunCounts("default", clock=lambda: now[0])
    counts.update()
    now[0] += 3600
    add_runs(succeeded=2)
    HandlerStats.objects.update(bucket=F("bucket") - timedelta(minutes=50))
    assert counts.update()["record"].succeeded == 2


def test_buckets_are_cumulative_and_end_with_infinity() -> None:
    histogram = [0] * BUCKETS
    histogram[0] = histogram[3] = histogram[-1] = 1
    found = buckets(histogram)
    assert [number for _bound, number in found] == sorted(number for _bound, number in found)
    assert found[0] == ("1e-05", 1)
    assert found[2] == ("4e-05", 2)
    assert found[-1] == ("+Inf", 3)
    assert all(float(bound) for bound, _number in found[:-1])
    assert math.isinf(float(found[-1][0]))


# ---------------------------------------------------------------- the view


def test_the_view_answers_with_the_exposition() -> None:
    answer = metrics_view()(RequestFactory().get("/metrics"))
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    assert Metrics(answer.content.decode())("outbox_up") == 1


@pytest.mark.parametrize(("sent", "status"), [("Bearer secret", 200), ("Bearer wrong", 401), ("", 401)])
def test_the_view_with_a_token_needs_it(sent: str, status: int) -> None:
    view = metrics_view(token="secret")
    assert view(RequestFactory().get("/metrics", headers={"authorization": sent})).status_code == status


def test_the_view_answers_503_while_an_earlier_scrape_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "MAX_WAIT_S", 0.01)
    busy = OutboxCollector()
    registry = CollectorRegistry()
    registry.register(busy)
    monkeypatch.setattr(views, "registry", lambda: registry)
    with busy._lock:
        answer = metrics_view()(RequestFactory().get("/metrics"))
    assert (answer.status_code, answer.content) == (503, b"an earlier scrape has not ended")
    assert metrics_view()(RequestFactory().get("/metrics")).status_code == 200


@override_settings(OUTBOX={"DATABASES": ["default", "second"]})
@pytest.mark.django_db(databases=["default", "second"])
@pytest.mark.postgres
def test_two_databases_share_the_families() -> None:
    text = generate_latest(_two_databases()).decode()
    assert text.count("# TYPE outbox_due_deliveries gauge") == 1
    for database in ("default", "second"):
        assert f'outbox_up{{database="{database}"}} 1.0' in text
        assert f'outbox_due_deliveries{{database="{database}"}} 0.0' in text


def _two_databases() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(OutboxCollector(health=RecentHealth()))
    return registry

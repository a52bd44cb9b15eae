"""The line that a busy relay logs once a minute."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from relay import minute_report
from relay.minute_report import MinuteReport


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def report(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> MinuteReport:
    """Return the report of a relay whose oldest due delivery waits for 1.5 s."""
    caplog.set_level(logging.INFO, "relay")
    monkeypatch.setattr(minute_report, "oldest_due_s", lambda _database, limit: 1.5)
    return MinuteReport("default", lambda: clock.now)


def test_a_busy_minute_is_logged_with_its_counts(
    report: MinuteReport, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    report.note(1000, 0.010)
    report.note(200, 0.030)
    clock.now = 60.0
    report.run()
    (record,) = caplog.records
    assert record.getMessage() == (
        "dispatched 1200 deliveries of database 'default' in 2 batches within 1 min; "
        "a batch took 20 ms, the longest 30 ms; oldest due 1.5 s"
    )
    fields = vars(record)
    assert (fields["database"], fields["deliveries"], fields["batches"]) == ("default", 1200, 2)
    assert (fields["longest_batch_s"], fields["oldest_due_s"], fields["duration_s"]) == (0.030, 1.5, 60.0)


def test_each_minute_is_counted_alone(
    report: MinuteReport, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    report.note(5, 0.1)
    report.run()
    clock.now = 60.0
    report.note(3, 0.1)
    report.run()
    assert "dispatched 3 deliveries" in caplog.records[-1].getMessage()


def test_an_idle_minute_has_no_line(report: MinuteReport, caplog: pytest.LogCaptureFixture) -> None:
    report.run()
    assert caplog.records == []

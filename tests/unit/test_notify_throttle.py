"""The throttle of notifications that the processes of a host share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.publishing.notify_throttle import FOLDER, NotifyThrottle, throttle_for


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use an empty folder for temporary files, and a throttle that is not cached."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    throttle_for.cache_clear()
    yield tmp_path
    throttle_for.cache_clear()


@pytest.fixture
def throttle() -> NotifyThrottle:
    """Return a throttle of one process."""
    return NotifyThrottle(bytearray(NotifyThrottle.BYTES))


def another_process() -> NotifyThrottle:
    """Return the throttle as another process finds it."""
    throttle_for.cache_clear()
    return throttle_for("default")


def allowed(throttle: NotifyThrottle, *, commits: int, per_s: float, start: float = 10.0) -> int:
    """Return how many of the commits of a steady rate the throttle allows to notify."""
    return sum(throttle.allows(start + number / per_s) for number in range(commits))


@pytest.mark.parametrize("per_s", [1.0, 40.0, 200.0])
def test_each_commit_notifies_up_to_two_hundred_a_second(throttle: NotifyThrottle, per_s: float) -> None:
    assert allowed(throttle, commits=1000, per_s=per_s) == 1000


def test_a_busy_host_notifies_twenty_times_a_second(throttle: NotifyThrottle) -> None:
    allowed(throttle, commits=1000, per_s=1000.0)
    # Two more seconds at the same rate.
    assert 38 <= allowed(throttle, commits=2000, per_s=1000.0, start=11.0) <= 41


def test_a_commit_that_is_counted_late_does_not_refill_the_bucket(throttle: NotifyThrottle) -> None:
    allowed(throttle, commits=1000, per_s=1000.0)
    # Another process has read its clock before, and writes its commit after, that of the last commit.
    assert not throttle.allows(10.9989)
    assert not throttle.allows(10.9992)


def test_a_burst_is_notified_of_in_full(throttle: NotifyThrottle) -> None:
    assert allowed(throttle, commits=19, per_s=100_000.0) == 19


def test_a_host_that_calms_down_notifies_of_each_commit_again(throttle: NotifyThrottle) -> None:
    allowed(throttle, commits=1000, per_s=1000.0)
    assert allowed(throttle, commits=100, per_s=100.0, start=12.0) == 100


def test_a_failed_notification_is_forgotten(throttle: NotifyThrottle) -> None:
    allowed(throttle, commits=1000, per_s=1000.0)
    throttle.reset()
    assert throttle.allows(11.0)


def test_a_notification_before_a_reboot_does_not_count(throttle: NotifyThrottle) -> None:
    allowed(throttle, commits=1000, per_s=1000.0, start=1_000_000.0)
    assert throttle.allows(10.0)


def test_processes_of_a_host_share_a_throttle(temporary: Path) -> None:
    allowed(another_process(), commits=1000, per_s=1000.0)
    assert not another_process().allows(11.0)


def test_without_a_private_folder_each_process_has_its_own_throttle(temporary: Path) -> None:
    another_process()
    (folder,) = temporary.glob(f"{FOLDER}-*")
    folder.chmod(0o777)
    allowed(another_process(), commits=1000, per_s=1000.0)
    assert another_process().allows(11.0)


def test_if_the_file_is_a_symlink_each_process_has_its_own_throttle(temporary: Path) -> None:
    another_process()
    (file,) = temporary.glob("*/*")
    file.unlink()
    file.symlink_to(temporary / "elsewhere")
    assert another_process().allows(10.0)
    assert not (temporary / "elsewhere").exists()

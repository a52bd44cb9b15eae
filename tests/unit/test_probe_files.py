"""The probe files of relays and workers: touched while all of a process works, and only then."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.worker.probe_thread import ProbeThread, is_working
from relay.probe_file import SILENT_S, ProbeFile
from tests.support.processes import wait_until


class Clock:
    """A clock that only the test advances, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def is_touched(path: Path, report: Any) -> bool:
    """Return whether a report touches the file."""
    os.utime(path, (1, 1))
    report()
    return path.stat().st_mtime > 1


def test_the_file_exists_from_the_start_until_it_is_removed(tmp_path: Path) -> None:
    probe = ProbeFile(tmp_path / "probe", ["default"])
    assert (tmp_path / "probe").exists()
    probe.remove()
    assert not (tmp_path / "probe").exists()
    probe.remove()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="probe"):
        ProbeFile(tmp_path / "missing" / "probe", ["default"])


def test_reports_touch_the_file_at_most_once_a_second(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "probe"
    report = ProbeFile(path, ["default"], clock=clock).reporter("default")
    assert not is_touched(path, report)
    clock.now += 1
    assert is_touched(path, report)
    assert not is_touched(path, report)


def test_a_relay_that_hangs_keeps_the_file_from_being_touched(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "probe"
    probe = ProbeFile(path, ["default", "second"], clock=clock)
    default, second = probe.reporter("default"), probe.reporter("second")
    clock.now += SILENT_S - 1
    assert is_touched(path, default)
    clock.now += 1
    assert not is_touched(path, default)
    second()
    clock.now += 1
    assert is_touched(path, default)


def test_a_file_that_cannot_be_touched_is_reported_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    report = ProbeFile(folder / "probe", ["default"], clock=clock).reporter("default")
    (folder / "probe").unlink()
    folder.rmdir()
    for _ in range(2):
        clock.now += 1
        report()
    assert caplog.text.count("could not touch the probe file") == 1


# ---------------------------------------------------------------- workers


def ended() -> threading.Thread:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return thread


def a_worker(*threads: threading.Thread) -> Any:
    return SimpleNamespace(workers=threads[:1], consumers=dict(enumerate(threads[1:])))


def test_a_worker_works_while_all_of_its_threads_are_alive() -> None:
    alive = threading.main_thread()
    assert is_working(a_worker(alive, alive))
    assert not is_working(a_worker(ended(), alive))
    assert not is_working(a_worker(alive, ended()))


def test_the_file_of_a_worker_names_its_process_and_is_removed_at_the_end(tmp_path: Path) -> None:
    alive = threading.main_thread()
    thread = ProbeThread(str(tmp_path / "worker-{pid}"), worker=a_worker(alive, alive), interval_s=0.01)
    thread.start()
    path = tmp_path / f"worker-{os.getpid()}"
    wait_until(path.exists, what="the probe file")
    thread.note_stopping()
    assert thread.is_alive()
    thread.end()
    thread.join(60)
    assert not path.exists()


def test_the_file_of_a_worker_with_a_dead_thread_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "worker"
    thread = ProbeThread(str(path), worker=a_worker(ended()), interval_s=0.01)
    thread.start()
    thread.end()
    thread.join(60)
    assert not path.exists()

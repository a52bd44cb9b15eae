"""The in-flight log of a worker process: its content after a crash, and who reads it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from outbox.events import DeliveryRef
from outbox.worker.inflight_log import (
    DELIVERIES_PER_SLOT,
    SLOT_BYTES,
    SLOTS,
    SUFFIX,
    InflightLog,
    InflightRun,
    abandoned_runs,
)


def found(folder: Path, site: str = "site") -> list[list[InflightRun]]:
    return list(abandoned_runs(folder, site))


def refs(*ids: int) -> list[DeliveryRef]:
    """Return deliveries of events of their own."""
    return [DeliveryRef(one, str(UUID(int=2**127 + one))) for one in ids]


def fork(work: Callable[[], None]) -> int:
    """Call a function in a forked child, which then exits; return its process id."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_the_runs_of_a_killed_process_are_read_once(tmp_path: Path) -> None:
    def work() -> None:
        inflight_log = InflightLog(tmp_path, "site")
        with inflight_log.entry("other", refs(7)):
            pass
        with inflight_log.entry("default", refs(1, 2)), inflight_log.entry("other", refs(3)):
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(work), 0)
    assert found(tmp_path) == [[("default", refs(1, 2)), ("other", refs(3))]]
    assert found(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_log_of_a_living_process_is_not_read(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    with inflight_log.entry("default", refs(1)):
        assert found(tmp_path) == []
        inflight_log.close()
        assert found(tmp_path) == [[("default", refs(1))]]


def test_a_stopped_process_leaves_no_log(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    with inflight_log.entry("default", refs(1)):
        inflight_log.delete()
    with inflight_log.entry("default", refs(2)):
        assert found(tmp_path) == []


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    ready, notify_ready = os.pipe()
    done, notify_done = os.pipe()

    def work() -> None:
        inflight_log.close()
        os.close(notify_done)
        os.write(notify_ready, b".")
        os.read(done, 1)

    with inflight_log.entry("default", refs(1)):
        child = fork(work)
        try:
            os.read(ready, 1)
            inflight_log.close()
            assert found(tmp_path) == [[("default", refs(1))]]
        finally:
            os.close(notify_done)
            os.waitpid(child, 0)
            for end in (ready, notify_ready, done):
                os.close(end)


def test_a_log_whose_reader_stopped_is_read_again(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    with inflight_log.entry("default", refs(1)):
        inflight_log.close()
    for _runs in abandoned_runs(tmp_path, "site"):
        break
    assert len(found(tmp_path)) == 1


def test_only_old_logs_of_other_sites_are_deleted(tmp_path: Path) -> None:
    other = InflightLog(tmp_path, "elsewhere")
    with other.entry("default", refs(1)):
        other.close()
    assert found(tmp_path) == []
    assert other.path.exists()
    os.utime(other.path, (1, 1))
    assert found(tmp_path) == []
    assert not other.path.exists()


def test_a_large_batch_takes_several_slots(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    batch = refs(*range(1, 2 * DELIVERIES_PER_SLOT + 2))
    with inflight_log.entry("default", batch):
        inflight_log.close()
        (runs,) = found(tmp_path)
    assert [one for _alias, deliveries in runs for one in deliveries] == batch


def test_a_run_without_a_free_slot_is_not_recorded(tmp_path: Path) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    every_slot = refs(*range(SLOTS * DELIVERIES_PER_SLOT))
    with inflight_log.entry("default", every_slot), inflight_log.entry("default", refs(1)):
        pass
    with inflight_log.entry("default", refs(2)):
        inflight_log.close()
        assert found(tmp_path) == [[("default", refs(2))]]


def test_a_file_with_malformed_content_contains_no_runs(tmp_path: Path) -> None:
    (tmp_path / f"site-1{SUFFIX}").write_bytes(b"\xff" * 100)
    (tmp_path / f"site-2{SUFFIX}").write_bytes(b"\xff" * SLOT_BYTES)
    assert found(tmp_path) == [[], []]

"""The journal of a worker process: what it leaves behind, and when it is read."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from outbox import journal as journals
from outbox.journal import DELIVERIES_PER_SLOT, SLOTS, Journal, left_behind


def found(folder: Path, site: str = "site") -> list[list[journals.Noted]]:
    return list(left_behind(folder, site))


def fork(work: Callable[[], None]) -> int:
    """Do something in a forked child, which then ends without a word; return its process id."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_what_a_killed_process_was_running_is_read_once(tmp_path: Path) -> None:
    def work() -> None:
        journal = Journal(tmp_path, "site")
        with journal.noting("other", [7]):
            pass
        with journal.noting("default", [1, 2]), journal.noting("other", [3]):
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(work), 0)
    assert found(tmp_path) == [[("default", [1, 2]), ("other", [3])]]
    assert found(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    with journal.noting("default", [1]):
        assert found(tmp_path) == []
        journal.forget()
        assert found(tmp_path) == [[("default", [1])]]


def test_a_process_that_was_asked_to_stop_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    with journal.noting("default", [1]):
        journal.remove()
    with journal.noting("default", [2]):
        assert found(tmp_path) == []


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    ready, tell_ready = os.pipe()
    done, tell_done = os.pipe()

    def work() -> None:
        journal.forget()
        os.close(tell_done)
        os.write(tell_ready, b".")
        os.read(done, 1)

    with journal.noting("default", [1]):
        child = fork(work)
        try:
            os.read(ready, 1)
            journal.forget()
            assert found(tmp_path) == [[("default", [1])]]
        finally:
            os.close(tell_done)
            os.waitpid(child, 0)
            for end in (ready, tell_ready, done):
                os.close(end)


def test_a_journal_that_could_not_be_dealt_with_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    with journal.noting("default", [1]):
        journal.forget()
    for _noted in left_behind(tmp_path, "site"):
        break
    assert len(found(tmp_path)) == 1


def test_other_sites_are_none_of_its_business_until_they_are_old(tmp_path: Path) -> None:
    other = Journal(tmp_path, "elsewhere")
    with other.noting("default", [1]):
        other.forget()
    assert found(tmp_path) == []
    assert other.path.exists()
    os.utime(other.path, (1, 1))
    assert found(tmp_path) == []
    assert not other.path.exists()


def test_a_large_batch_takes_several_slots(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    batch = list(range(1, 2 * DELIVERIES_PER_SLOT + 2))
    with journal.noting("default", batch):
        journal.forget()
        (noted,) = found(tmp_path)
    assert [one for _alias, deliveries in noted for one in deliveries] == batch


def test_what_finds_no_slot_runs_all_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "site")
    with journal.noting("default", range(SLOTS * DELIVERIES_PER_SLOT)), journal.noting("default", [1]):
        pass
    with journal.noting("default", [2]):
        journal.forget()
        assert found(tmp_path) == [[("default", [2])]]


def test_a_file_that_is_no_journal_says_nothing(tmp_path: Path) -> None:
    (tmp_path / f"site-1{journals.SUFFIX}").write_bytes(b"\xff" * 100)
    (tmp_path / f"site-2{journals.SUFFIX}").write_bytes(b"\xff" * journals.SLOT_BYTES)
    assert found(tmp_path) == [[], []]

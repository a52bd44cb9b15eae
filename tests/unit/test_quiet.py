"""What the processes of a host tell each other of their notifications."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import folders
from outbox.quiet import FOLDER, Quiet, quiet_of


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a folder for temporary files that nobody else has, and nothing remembered of another one."""
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    quiet_of.cache_clear()
    yield tmp_path
    quiet_of.cache_clear()


def another_process() -> Quiet:
    """Return what a process finds that has not looked yet."""
    quiet_of.cache_clear()
    return quiet_of("default")


def test_it_lasts_as_long_as_it_should() -> None:
    quiet = Quiet(bytearray(Quiet.BYTES))
    assert [quiet.is_over(now, 0.5) for now in (10.0, 10.4, 10.5, 10.9, 11.0)] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_on_a_busy_host_it_lasts_longer_until_the_host_is_not_busy_any_more() -> None:
    quiet = Quiet(bytearray(Quiet.BYTES))
    moments = [*(10.0 + n / 10 for n in range(12)), 12.2, 12.8, 13.3, 13.9]
    assert [now for now in moments if quiet.is_over(now, 0.5, busy_s=1.0)] == [10.0, 11.0, 12.2, 13.3, 13.9]


def test_one_that_came_to_nothing_is_forgotten() -> None:
    quiet = Quiet(bytearray(Quiet.BYTES))
    quiet.is_over(10.0, 0.5)
    quiet.end()
    assert quiet.is_over(10.1, 0.5)


def test_a_moment_of_an_earlier_life_of_the_host_does_not_count() -> None:
    quiet = Quiet(bytearray(Quiet.BYTES))
    quiet.is_over(1_000_000.0, 0.5)
    assert quiet.is_over(10.0, 0.5)


def test_processes_of_a_host_share_it(temporary: Path) -> None:
    assert another_process().is_over(10.0, 0.5)
    assert not another_process().is_over(10.4, 0.5)


def test_without_a_folder_of_its_own_each_process_is_by_itself(temporary: Path) -> None:
    another_process()
    (folder,) = temporary.glob(f"{FOLDER}-*")
    folder.chmod(0o777)
    assert another_process().is_over(10.0, 0.5)
    assert another_process().is_over(10.1, 0.5)


def test_a_file_that_is_no_file_leaves_each_process_by_itself(temporary: Path) -> None:
    another_process()
    (file,) = temporary.glob("*/*")
    file.unlink()
    file.symlink_to(temporary / "elsewhere")
    assert another_process().is_over(10.0, 0.5)
    assert not (temporary / "elsewhere").exists()

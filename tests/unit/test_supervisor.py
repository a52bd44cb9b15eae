"""The supervisor, with shell scripts in place of relays."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from pathlib import Path

import pytest

from relay.backoff import Backoff
from relay.supervision import parent_pipe
from relay.supervision.restart_backoff import STABLE_AFTER_S, RestartBackoff
from relay.supervision.supervisor import DEATHS_TO_GIVE_UP, Supervisor
from tests.support.processes import wait_until

# A relay that runs until SIGTERM.
UNTIL_SIGTERM = "trap 'exit 0' TERM; while :; do sleep 0.02; done"


def short_backoff() -> RestartBackoff:
    """Return a backoff that hardly waits."""
    return RestartBackoff(backoff=Backoff(base_s=0.01, cap_s=0.02))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return a function that reads the words that scripts have written to the file $NOTES."""
    file = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(file))
    return lambda: file.read_text().split() if file.exists() else []


def supervise(script: str, *, processes: int = 1, restart: bool = True) -> int:
    """Run shells with a script under a supervisor; return the exit status."""
    command = ["sh", "-c", script]
    return Supervisor(command, processes=processes, restart=restart, make_backoff=short_backoff).run()


def once(condition: Callable[[], object], *numbers: signal.Signals) -> threading.Thread:
    """Send signals to this process, the supervisor, when a condition is met."""

    def send() -> None:
        wait_until(condition)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


# ---------------------------------------------------------------- processes that may end


def test_processes_that_may_end_are_not_restarted(notes: Callable[[], list[str]]) -> None:
    assert supervise("echo ended >> $NOTES", processes=3, restart=False) == 0
    assert notes() == ["ended"] * 3


@pytest.mark.parametrize(("way", "status"), [("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)])
def test_the_supervisor_returns_the_worst_status(
    notes: Callable[[], list[str]], tmp_path: Path, way: str, status: int
) -> None:
    # Only one of them can make the directory. The others end later, with a better status.
    script = f"mkdir {tmp_path}/first 2>&- || {{ sleep 0.1; echo ended >> $NOTES; exit 3; }}; {way}"
    assert supervise(script, processes=3, restart=False) == status
    assert notes() == ["ended"] * 2


# ---------------------------------------------------------------- processes that may not end


def test_a_process_that_died_is_restarted(
    notes: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "relay")
    script = f"echo $$ >> $NOTES; test $(wc -l < $NOTES) -ge 3 || kill -KILL $$; {UNTIL_SIGTERM}"
    sender = once(lambda: len(notes()) == 3, signal.SIGTERM)
    assert supervise(script) == 0
    sender.join()
    first, second, _third = notes()
    assert [record.getMessage().rpartition(";")[0] for record in caplog.records] == [
        f"relay process 1 (pid {pid}) was ended by SIGKILL" for pid in (first, second)
    ]


@pytest.mark.parametrize(("way", "status"), [("exit 3", 3), ("exit 0", 1), ("kill -KILL $$", 137)])
def test_the_supervisor_ends_when_all_processes_keep_dying(
    notes: Callable[[], list[str]], caplog: pytest.LogCaptureFixture, way: str, status: int
) -> None:
    assert supervise(f"echo started >> $NOTES; {way}", processes=2) == status
    assert len(notes()) >= 2 * DEATHS_TO_GIVE_UP
    assert f"each relay process has died {DEATHS_TO_GIVE_UP} times in a row" in caplog.text


def test_processes_are_restarted_as_long_as_one_is_stable(
    notes: Callable[[], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = f"mkdir {tmp_path}/first 2>&- || {{ echo died >> $NOTES; exit 3; }}; {UNTIL_SIGTERM}"
    sender = once(lambda: len(notes()) > 2 * DEATHS_TO_GIVE_UP, signal.SIGTERM)
    # The second process may be about to die when the signal reaches it.
    assert supervise(script, processes=2) in {0, 3}
    sender.join()
    assert "giving up" not in caplog.text


def test_a_process_that_became_stable_keeps_the_supervisor_running(
    notes: Callable[[], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # No time passes during the deaths, and a stable time with each later reading of the clock.
    times = chain(repeat(0.0, 3 * DEATHS_TO_GIVE_UP), count(step=STABLE_AFTER_S))
    recovered = RestartBackoff(clock=times.__next__)
    for _ in range(DEATHS_TO_GIVE_UP):
        recovered.note_start()
        recovered.note_death()
    backoffs = iter([recovered, short_backoff()])
    script = f"mkdir {tmp_path}/first 2>&- || {{ echo died >> $NOTES; exit 3; }}; {UNTIL_SIGTERM}"
    sender = once(lambda: len(notes()) > 2 * DEATHS_TO_GIVE_UP, signal.SIGTERM)
    supervisor = Supervisor(["sh", "-c", script], processes=2, make_backoff=backoffs.__next__)
    # The second process may be about to die when the signal reaches it.
    assert supervisor.run() in {0, 3}
    sender.join()
    assert "giving up" not in caplog.text


def test_the_supervisor_ends_when_its_command_cannot_start(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(["/no/such/program"], processes=2, make_backoff=short_backoff)
    assert supervisor.run() == os.EX_OSERR
    assert "relay process 1 could not start: " in caplog.text


# ---------------------------------------------------------------- signals


@pytest.fixture
def sighup_not_ignored() -> Iterator[None]:
    """Handle SIGHUP even if the tests were started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("sighup_not_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_reaches_the_processes_as_sigterm(
    notes: Callable[[], list[str]], number: signal.Signals
) -> None:
    sender = once(lambda: len(notes()) == 2, number)
    script = f"echo started >> $NOTES; {UNTIL_SIGTERM}"
    assert supervise(script.replace("exit 0", "echo stopped >> $NOTES; exit 0"), processes=2) == 0
    sender.join()
    assert notes() == ["started", "started", "stopped", "stopped"]


def test_sigterm_during_a_start_is_no_failure(
    notes: Callable[[], list[str]],
) -> None:
    sender = once(lambda: notes(), signal.SIGTERM)
    assert supervise("echo started >> $NOTES; exec sleep 60") == 0
    sender.join()


def test_a_failure_during_a_stop_is_the_exit_status(notes: Callable[[], list[str]]) -> None:
    sender = once(lambda: notes(), signal.SIGTERM)
    assert supervise(f"echo started >> $NOTES; {UNTIL_SIGTERM}".replace("exit 0", "exit 4")) == 4
    sender.join()


def test_the_second_signal_kills_the_processes(notes: Callable[[], list[str]]) -> None:
    script = "trap '' TERM; echo started >> $NOTES; while :; do sleep 0.02; done"
    sender = once(lambda: len(notes()) == 2, signal.SIGTERM, signal.SIGINT)
    # The order of two signals that are sent at once is not defined.
    assert supervise(script, processes=2) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    sender.join()


@pytest.mark.usefixtures("sighup_not_ignored")
def test_sighup_after_another_signal_kills_no_process(notes: Callable[[], list[str]]) -> None:
    on_sigterm = "trap 'echo stopped >> $NOTES; sleep 0.1; exit 0' TERM"
    first = once(lambda: notes(), signal.SIGTERM)
    second = once(lambda: "stopped" in notes(), signal.SIGHUP)
    assert supervise(f"{on_sigterm}; echo started >> $NOTES; while :; do sleep 0.02; done") == 0
    first.join()
    second.join()


def test_the_signal_handlers_are_restored_at_the_end() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    assert supervise("exit 0", restart=False) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_process_starts_with_sigint_blocked() -> None:
    blocked = "import signal, sys; sys.exit(signal.SIGINT not in signal.pthread_sigmask(0, ()))"
    assert Supervisor([sys.executable, "-c", blocked], processes=1, restart=False).run() == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ---------------------------------------------------------------- children


def test_a_child_inherits_a_pipe_that_only_the_supervisor_can_close() -> None:
    script = (
        "import os, select, stat, sys\n"
        f"fd = int(os.environ[{parent_pipe.VARIABLE!r}])\n"
        "assert stat.S_ISFIFO(os.fstat(fd).st_mode)\n"
        "sys.exit(bool(select.select([fd], (), (), 0)[0]))\n"
    )
    assert Supervisor([sys.executable, "-c", script], processes=2, restart=False).run() == 0


def test_a_process_that_a_child_starts_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    with parent_pipe.ParentPipe() as pipe:
        monkeypatch.setenv(parent_pipe.VARIABLE, str(pipe.reader))
        assert parent_pipe.inherited() == pipe.reader
        assert parent_pipe.inherited() is None


@pytest.mark.parametrize("start", [["start.py"], ["-m", "start"], ["-W", "error", "./start.py"]])
def test_the_command_starts_the_same_program_again(tmp_path: Path, start: list[str]) -> None:
    script = (
        "import json, os, sys\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from relay.supervision.child import own_command\n"
        "print(json.dumps(own_command()))\n"
    )
    (tmp_path / "start.py").write_text(script)
    command = [sys.executable, *start, "run_relay", "--processes", "2"]
    found = json.loads(subprocess.check_output(command, cwd=tmp_path))
    assert json.loads(subprocess.check_output(found, cwd=tmp_path)) == found
    assert found[-3:] == command[-3:]


def test_a_script_that_changes_the_directory_is_found_again(tmp_path: Path) -> None:
    script = (
        "import json, os, sys\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "os.chdir('/')\n"
        "from relay.supervision.child import own_command\n"
        "print(json.dumps(own_command()))\n"
    )
    (tmp_path / "start.py").write_text(script)
    found = json.loads(subprocess.check_output([sys.executable, "start.py", "x"], cwd=tmp_path))
    assert found[1:] == [str(tmp_path / "start.py"), "x"]

"""The supervisor with stand-ins for relays: what it makes of how its processes end."""

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

from relay import lifeline
from relay.backoff import Backoff
from relay.restarts import WELL_AFTER_S, Restarts
from relay.supervisor import DEATHS_TO_GIVE_UP, Supervisor
from tests.processes import wait_until

# Stands for a relay that waits for work.
UNTIL_TOLD = "trap 'exit 0' TERM; while :; do sleep 0.02; done"


def soon() -> Restarts:
    """Wait next to nothing after a death."""
    return Restarts(backoff=Backoff(base_s=0.01, cap_s=0.02))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return a function that reads what stand-ins have noted in the file $NOTES."""
    file = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(file))
    return lambda: file.read_text().split() if file.exists() else []


def supervise(script: str, *, processes: int = 1, restart: bool = True) -> int:
    """Supervise shells that run a script."""
    command = ["sh", "-c", script]
    return Supervisor(command, processes=processes, restart=restart, make_restarts=soon).run()


def once(condition: Callable[[], object], *numbers: signal.Signals) -> threading.Thread:
    """Send signals to this process, the supervisor's, once a condition is met."""

    def send() -> None:
        wait_until(condition)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


# ---------------------------------------------------------------- processes that may end


def test_processes_that_ended_well_are_not_started_again(notes: Callable[[], list[str]]) -> None:
    assert supervise("echo ended >> $NOTES", processes=3, restart=False) == 0
    assert notes() == ["ended"] * 3


@pytest.mark.parametrize(("way", "status"), [("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)])
def test_the_worst_status_of_all_processes_counts(
    notes: Callable[[], list[str]], tmp_path: Path, way: str, status: int
) -> None:
    # Only one of them can make the directory; those that end later end better.
    script = f"mkdir {tmp_path}/first 2>&- || {{ sleep 0.1; echo ended >> $NOTES; exit 3; }}; {way}"
    assert supervise(script, processes=3, restart=False) == status
    assert notes() == ["ended"] * 2


# ---------------------------------------------------------------- processes that may not end


def test_a_process_that_died_is_started_again(
    notes: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "relay")
    script = f"echo $$ >> $NOTES; test $(wc -l < $NOTES) -ge 3 || kill -KILL $$; {UNTIL_TOLD}"
    sender = once(lambda: len(notes()) == 3, signal.SIGTERM)
    assert supervise(script) == 0
    sender.join()
    first, second, _third = notes()
    assert [record.getMessage().rpartition(";")[0] for record in caplog.records] == [
        f"relay process 1 (pid {pid}) was ended by SIGKILL" for pid in (first, second)
    ]


@pytest.mark.parametrize(("way", "status"), [("exit 3", 3), ("exit 0", 1), ("kill -KILL $$", 137)])
def test_when_all_processes_die_again_and_again_the_supervisor_gives_up(
    notes: Callable[[], list[str]], caplog: pytest.LogCaptureFixture, way: str, status: int
) -> None:
    assert supervise(f"echo started >> $NOTES; {way}", processes=2) == status
    assert len(notes()) >= 2 * DEATHS_TO_GIVE_UP
    assert f"each relay process has died {DEATHS_TO_GIVE_UP} times in a row" in caplog.text


def test_as_long_as_one_process_is_well_the_others_are_started_again(
    notes: Callable[[], list[str]], tmp_path: Path
) -> None:
    script = f"mkdir {tmp_path}/first 2>&- || {{ echo died >> $NOTES; exit 3; }}; {UNTIL_TOLD}"
    sender = once(lambda: len(notes()) > 2 * DEATHS_TO_GIVE_UP, signal.SIGTERM)
    assert supervise(script, processes=2) == 0
    sender.join()


def test_a_process_that_is_well_by_now_makes_up_for_its_early_deaths(
    notes: Callable[[], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # No time passes while it dies, and at each later look all that makes a long life.
    times = chain(repeat(0.0, 3 * DEATHS_TO_GIVE_UP), count(step=WELL_AFTER_S))
    recovered = Restarts(clock=times.__next__)
    for _ in range(DEATHS_TO_GIVE_UP):
        recovered.note_start()
        recovered.note_death()
    places = iter([recovered, soon()])
    script = f"mkdir {tmp_path}/first 2>&- || {{ echo died >> $NOTES; exit 3; }}; {UNTIL_TOLD}"
    sender = once(lambda: len(notes()) > 2 * DEATHS_TO_GIVE_UP, signal.SIGTERM)
    supervisor = Supervisor(["sh", "-c", script], processes=2, make_restarts=places.__next__)
    # The other one may be about to die when it is told to end.
    assert supervisor.run() in {0, 3}
    sender.join()
    assert "giving up" not in caplog.text


def test_a_command_that_cannot_start_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(["/no/such/program"], processes=2, make_restarts=soon)
    assert supervisor.run() == os.EX_OSERR
    assert "relay process 1 could not start: " in caplog.text


# ---------------------------------------------------------------- signals


@pytest.fixture
def with_a_terminal() -> Iterator[None]:
    """Heed SIGHUP even if the tests run where it is shielded off."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("with_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_reaches_the_processes_as_sigterm(
    notes: Callable[[], list[str]], number: signal.Signals
) -> None:
    sender = once(lambda: len(notes()) == 2, number)
    script = f"echo begun >> $NOTES; {UNTIL_TOLD}"
    assert supervise(script.replace("exit 0", "echo told >> $NOTES; exit 0"), processes=2) == 0
    sender.join()
    assert notes() == ["begun", "begun", "told", "told"]


def test_a_process_that_is_told_while_it_still_starts_has_stopped_well(
    notes: Callable[[], list[str]],
) -> None:
    sender = once(lambda: notes(), signal.SIGTERM)
    assert supervise("echo begun >> $NOTES; exec sleep 60") == 0
    sender.join()


def test_a_process_that_fails_while_it_stops_is_told_by_the_status(notes: Callable[[], list[str]]) -> None:
    sender = once(lambda: notes(), signal.SIGTERM)
    assert supervise(f"echo begun >> $NOTES; {UNTIL_TOLD}".replace("exit 0", "exit 4")) == 4
    sender.join()


def test_the_second_signal_kills_what_will_not_end(notes: Callable[[], list[str]]) -> None:
    script = "trap '' TERM; echo begun >> $NOTES; while :; do sleep 0.02; done"
    sender = once(lambda: len(notes()) == 2, signal.SIGTERM, signal.SIGINT)
    # Which of two signals that are sent at once is the first, is the system's to say.
    assert supervise(script, processes=2) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    sender.join()


@pytest.mark.usefixtures("with_a_terminal")
def test_a_hangup_on_top_of_another_signal_kills_nobody(notes: Callable[[], list[str]]) -> None:
    told = "trap 'echo told >> $NOTES; sleep 0.1; exit 0' TERM"
    first = once(lambda: notes(), signal.SIGTERM)
    second = once(lambda: "told" in notes(), signal.SIGHUP)
    assert supervise(f"{told}; echo begun >> $NOTES; while :; do sleep 0.02; done") == 0
    first.join()
    second.join()


def test_signals_are_handled_as_before_when_all_is_over() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    assert supervise("exit 0", restart=False) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_process_begins_with_ctrl_c_blocked() -> None:
    blocked = "import signal, sys; sys.exit(signal.SIGINT not in signal.pthread_sigmask(0, ()))"
    assert Supervisor([sys.executable, "-c", blocked], processes=1, restart=False).run() == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ---------------------------------------------------------------- what a child is given


def test_a_child_inherits_the_end_of_the_lifeline_that_only_the_supervisor_can_end() -> None:
    look = (
        "import os, select, stat, sys\n"
        f"fd = int(os.environ[{lifeline.VARIABLE!r}])\n"
        "assert stat.S_ISFIFO(os.fstat(fd).st_mode)\n"
        "sys.exit(bool(select.select([fd], (), (), 0)[0]))\n"
    )
    assert Supervisor([sys.executable, "-c", look], processes=2, restart=False).run() == 0


def test_being_a_child_is_not_inherited_further(monkeypatch: pytest.MonkeyPatch) -> None:
    with lifeline.Lifeline() as line:
        monkeypatch.setenv(lifeline.VARIABLE, str(line.reader))
        assert lifeline.inherited() == line.reader
        assert lifeline.inherited() is None


@pytest.mark.parametrize("start", [["start.py"], ["-m", "start"], ["-W", "error", "./start.py"]])
def test_the_command_starts_the_same_program_again(tmp_path: Path, start: list[str]) -> None:
    script = (
        "import json, os, sys\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from relay.child import own_command\n"
        "print(json.dumps(own_command()))\n"
    )
    (tmp_path / "start.py").write_text(script)
    command = [sys.executable, *start, "run_relay", "--processes", "2"]
    found = json.loads(subprocess.check_output(command, cwd=tmp_path))
    assert json.loads(subprocess.check_output(found, cwd=tmp_path)) == found
    assert found[-3:] == command[-3:]


def test_a_script_that_leaves_its_directory_is_found_again(tmp_path: Path) -> None:
    script = (
        "import json, os, sys\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "os.chdir('/')\n"
        "from relay.child import own_command\n"
        "print(json.dumps(own_command()))\n"
    )
    (tmp_path / "start.py").write_text(script)
    found = json.loads(subprocess.check_output([sys.executable, "start.py", "x"], cwd=tmp_path))
    assert found[1:] == [str(tmp_path / "start.py"), "x"]

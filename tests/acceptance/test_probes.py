"""The probes of processes: the server of `run_relay --metrics`, and probe files."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from outbox.models import ProcessHeartbeat
from tests.support.data_flow import publish
from tests.support.processes import Process, wait_until

from .stage import relay, wait_for_states, with_options, worker

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]


def port_of(process: Process) -> int:
    """Return the port that a relay with `--metrics 0` has chosen."""
    return int(process.wait_for_line(r"/ready on 127\.0\.0\.1:(\d+)\.", 60)[1])


def get(port: int, path: str) -> tuple[int, str]:
    """Return status and body of an answer; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def changed_at(path: Path) -> int:
    """Return the time of the last change in nanoseconds; 0 without a file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_a_touch(path: Path) -> None:
    before = changed_at(path)
    wait_until(lambda: changed_at(path) > before, 60, f"{path.name} to be touched")


# ---------------------------------------------------------------- the server


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_relay_serves_metrics_and_probes(redis_env: dict[str, str], processes: str) -> None:
    with relay(redis_env, "--metrics", "0", "--processes", processes) as process:
        port = port_of(process)
        wait_until(lambda: ProcessHeartbeat.objects.relays().count() == int(processes), 60)
        assert get(port, "/live") == (200, '{"status": "alive"}')
        publish("filed.mail")
        wait_for_states(dispatched=1)
        status, text = get(port, "/metrics")
        assert status == 200
        assert f'outbox_processes_alive{{database="default",kind="relay"}} {processes}.0' in text
        assert get(port, "/nothing")[0] == 404
        process.terminate()
        assert process.wait() == 0
    assert get(port, "/live") == (0, "")


def test_the_verdict_of_the_server_follows_the_outbox(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--metrics", "127.0.0.1:0") as process:
        port = port_of(process)
        verdict = wait_until(lambda: _verdict(port), 60, "the server")
        assert verdict in ({"verdict": "ok"}, {"verdict": "trouble"})
        wait_until(lambda: _verdict(port) == {"verdict": "ok"}, 60, "the relay to be alive")
        publish("filed.mail")
        # No worker serves the queue.
        wait_until(lambda: _verdict(port) == {"verdict": "trouble"}, 60, "the trouble")
        assert get(port, "/ready")[0] == 503


def _verdict(port: int) -> Any:
    status, text = get(port, "/ready")
    return json.loads(text) if status else None


def test_a_relay_serves_on_an_ipv6_address(redis_env: dict[str, str]) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with relay(redis_env, "--metrics", "[::1]:0") as process:
        port = process.wait_for_line(r"/ready on ::1:(\d+)\.", 60)[1]
        with urllib.request.urlopen(f"http://[::1]:{port}/live", timeout=30) as answer:
            assert answer.status == 200


def test_a_used_port_is_refused_with_the_reason(redis_env: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with relay(redis_env, "--metrics", str(port)) as process:
            process.wait_for_line(rf"--metrics 127\.0\.0\.1:{port}: Address already in use")
            assert process.wait() == 1


# ---------------------------------------------------------------- probe files


def test_a_relay_touches_its_probe_file_until_it_ends(redis_env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "probe"
    with relay(redis_env, "--probe-file", str(path)) as process:
        wait_until(path.exists, 60, "the probe file")
        wait_for_a_touch(path)
        process.terminate()
        assert process.wait() == 0
    assert not path.exists()


def test_the_probe_file_of_a_stopped_relay_grows_old(redis_env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "probe"
    with relay(redis_env, "--probe-file", str(path)) as process:
        wait_until(path.exists, 60, "the probe file")
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: time.time() - path.stat().st_mtime > 7, 60, "the file to grow old")
        process.send_signal(signal.SIGCONT)
        wait_for_a_touch(path)


def test_several_processes_share_no_probe_file(redis_env: dict[str, str], tmp_path: Path) -> None:
    with relay(redis_env, "--probe-file", str(tmp_path / "probe"), "--processes", "2") as process:
        process.wait_for_line("--probe-file cannot show the state of several processes")
        assert process.wait() == 1


def test_a_worker_touches_a_probe_file_of_its_own(redis_env: dict[str, str], tmp_path: Path) -> None:
    env = with_options(redis_env, WORKER_PROBE_FILE=str(tmp_path / "worker-{pid}"))
    with worker(env) as process:
        (path,) = wait_until(lambda: list(tmp_path.glob("worker-*")), 60, "the probe file")
        assert path.name != f"worker-{process.pid}", "the worker process is a child"
        os.kill(int(path.name.partition("-")[2]), 0)
        wait_for_a_touch(path)
        process.terminate()
        process.wait(60)
    assert not path.exists()


def test_a_relay_with_a_probe_file_that_cannot_be_written_does_not_start(
    redis_env: dict[str, str], tmp_path: Path
) -> None:
    missing: Process = relay(redis_env, "--probe-file", str(tmp_path / "missing" / "probe"))
    with missing as process:
        process.wait_for_line("--probe-file .*: No such file or directory")
        assert process.wait() == 1

"""`run_relay --reload`: the relay starts again with changed code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outbox.models import Delivery
from tests.support.data_flow import publish
from tests.support.processes import Process, wait_until

from .stage import wait_for_states

pytestmark = pytest.mark.slow

HANDLER = """
from outbox import handler

@handler("reloaded.{topic}", name="reloaded", queue_name="{queue}")
def reloaded(event):
    print("{text}", event.payload)
"""


@pytest.fixture
def app(process_env: dict[str, str], tmp_path: Path) -> Path:
    """Return the folder of an app with a handler that a test changes."""
    folder = tmp_path / "app" / "changing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder


def write(app: Path, text: str, topic: str = "*", name: str = "handlers.py") -> None:
    (app / name).write_text(HANDLER.format(topic=topic, text=text, queue="changing"))


def reloading(app: Path, env: dict[str, str]) -> Process:
    """Prepare a relay with a worker that starts again after a change."""
    settings = "from tests.settings import *\nINSTALLED_APPS += ['changing']\n"
    (app.parent / "changed_settings.py").write_text(settings)
    env = env | {
        "OUTBOX_TEST_BROKER_URL": "embedded:",
        "DJANGO_SETTINGS_MODULE": "changed_settings",
        "PYTHONPATH": f"{app.parent}:{env['PYTHONPATH']}",
        # A changed file may have the same size and second.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Process(
        *(sys.executable, "-m", "django", "run_relay", "--with-worker", "2", "--reload"),
        env=env,
    )


def publish_to_reloaded() -> None:
    """Publish an event to the handler that only the other process has."""
    event = publish("unhandled.here", "mail")
    Delivery.objects.create(event=event, handler="reloaded", queue="changing")


@pytest.mark.postgres
def test_a_changed_handler_runs_without_a_restart_by_hand(app: Path, process_env: dict[str, str]) -> None:
    write(app, "old code ran for")
    with reloading(app, process_env) as process:
        publish_to_reloaded()
        process.wait_for_line("old code ran for mail")
        wait_for_states(succeeded=1)
        write(app, "new code ran for")
        process.wait_for_line("handlers.py changed, so the relay starts again")
        publish_to_reloaded()
        process.wait_for_line("new code ran for mail")
        wait_for_states(succeeded=2)
        process.terminate()
        assert process.wait() == 0


@pytest.mark.postgres
def test_an_error_in_the_code_waits_for_the_next_change(app: Path, process_env: dict[str, str]) -> None:
    write(app, "old code ran for")
    with reloading(app, process_env) as process:
        process.wait_for_line("relay started")
        (app / "handlers.py").write_text("def broken(:\n")
        process.wait_for_line("SyntaxError")
        process.wait_for_line("the next one starts in")
        (app / "handlers.py").unlink()
        wait_until(lambda: process.output.count("relay started") == 2, what="the relay to start again")
        # A new file counts as a change too.
        write(app, "mended code ran for")
        wait_until(lambda: process.output.count("relay started") == 3, what="the relay to start again")
        publish_to_reloaded()
        process.wait_for_line("mended code ran for mail")
        process.terminate()
        assert process.wait() == 0


@pytest.mark.parametrize("option", ["--drain", "--once"])
def test_a_relay_that_ends_is_not_reloaded(option: str, process_env: dict[str, str]) -> None:
    with Process.manage("run_relay", "--reload", option, env=process_env) as process:
        process.wait_for_line("leave out --drain and --once")
        assert process.wait() == 1

"""The package on a system without the modules, functions and signals of POSIX, such as Windows.

The tests remove these names from Python in a child process. The package must need none of
them. The tests do not prove that it works on Windows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

IMPORTS = """
from tests.support import without_posix
import django
django.setup()
from outbox import receiver
import pkgutil, importlib, outbox, relay
for package in (outbox, relay):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
print("imported")
"""

RUN = """
from tests.support import without_posix
import django, dramatiq
django.setup()
from django.core.management import call_command
from django.db import transaction
from outbox import publish
from outbox.models import Delivery
from tests.testapp.handlers import QUEUE

call_command("migrate", run_syncdb=True, verbosity=0)
with transaction.atomic():
    publish("test.recorded", {"number": 7})
call_command("run_relay", drain=True)
broker = dramatiq.get_broker()
worker = dramatiq.Worker(broker, worker_threads=1)
worker.start()
broker.join(QUEUE)
worker.stop()
print(Delivery.objects.get(handler="record").state)
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a child process, with a SQLite database and a broker in its memory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_TEST_")}
    env |= {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3", "DJANGO_SETTINGS_MODULE": "tests.settings"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.processes
def test_every_module_can_be_imported(tmp_path: Path) -> None:
    ended = run(IMPORTS, tmp_path)
    assert ended.stdout == "imported\n", ended.stderr


@pytest.mark.processes
def test_an_event_is_published_dispatched_and_handled(tmp_path: Path) -> None:
    ended = run(RUN, tmp_path)
    assert ended.stdout.splitlines()[-1:] == ["succeeded"], ended.stdout + ended.stderr
    assert "has no file locks" in ended.stderr


@pytest.mark.processes
def test_several_relay_processes_are_refused(tmp_path: Path) -> None:
    code = RUN.replace('call_command("run_relay", drain=True)', 'call_command("run_relay", processes=2)')
    ended = run(code, tmp_path)
    assert ended.returncode == 1
    assert "--processes 2 needs a POSIX system" in ended.stderr

"""An outage of the database while outcomes are buffered."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from example.services import EmbeddedPostgres
from tests.conftest import ROOT
from tests.support.processes import Process

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.server]

# A separate process, since the test kills its database. It continues when the given file exists.
WORKER = """
import sys, time
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
from django.db import connection
from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery, HandlerStats
from tests.support.factories import make_delivery

call_command("migrate", "outbox", verbosity=0)
deliveries = [make_delivery(state="dispatched") for _ in range(40)]

def report(some):
    for one in some:
        confirmations.add(
            Outcome(one.ref, "default", "mail", "succeeded", "succeeded", duration_s=0.01)
        )

report(deliveries[:20])
print("reported before", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.02)
report(deliveries[20:])
print("reported during", flush=True)
confirmations.close(timeout_s=60)
connection.close()  # the outage broke the connection of this thread
states = set(Delivery.objects.values_list("state", flat=True))
counted = sum(HandlerStats.objects.values_list("succeeded", flat=True))
print("after the outage:", states, counted, flush=True)
"""


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """Return a server for this test, which may kill it."""
    with EmbeddedPostgres() as server:
        yield server


def test_outcomes_of_an_outage_are_written_once_the_database_is_back(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    env = os.environ | {
        "DATABASE_URL": server.url,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(ROOT),
    }
    with Process(sys.executable, "-c", WORKER, str(killed), env=env) as worker:
        worker.wait_for_line("reported before")
        server.kill()
        killed.touch()
        worker.wait_for_line(r"is away; \d+ outcomes wait")
        worker.wait_for_line("reported during")
        server.start()
        worker.wait_for_line(r"after the outage: \{'succeeded'\} 40$", deadline_s=60)
        assert worker.wait() == 0

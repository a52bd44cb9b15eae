"""A process that sells: one transaction after another with a business row and its event, despite all faults.

The process is controlled by files in its folder: `run` contains the name of the run to sell for. While `late`
exists, one transaction has published and stays open.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from itertools import count
from pathlib import Path

import django

from . import effort

PACE_S = 0.025
ROLL_BACK_EVERY = 5


class RolledBack(Exception):
    """Raised to roll back a sale."""


class Publisher:
    """Sells for one run after another."""

    def __init__(self, folder: Path) -> None:
        self._run_file = folder / "run"
        self._late_file = folder / "late"
        self._pause = threading.Event()
        self._late: threading.Thread | None = None

    def work(self) -> None:
        """Sell until this process is killed."""
        log("ready")
        while True:
            if run := self._run():
                self._sell_for(run)
            self._pause.wait(PACE_S)

    def _run(self) -> str:
        try:
            return self._run_file.read_text()
        except FileNotFoundError:
            return ""

    def _sell_for(self, run: str) -> None:
        refused = 0
        for number in count(1):
            if self._run() != run:
                break
            if self._late is None and self._late_file.exists():
                self._late = threading.Thread(target=self._sell_late, args=(run,), daemon=True)
                self._late.start()
            refused += not sell_in_transaction(run, number, roll_back=number % ROLL_BACK_EVERY == 0)
            self._pause.wait(PACE_S)
        if self._late is not None:
            self._late.join()
            self._late = None
        log(f"done {run} refused {refused}")

    def _sell_late(self, run: str) -> None:
        from django.db import connection, transaction

        with transaction.atomic():
            sell(run, "late", 0)
            log(f"late {run} open")
            while self._late_file.exists():
                self._pause.wait(PACE_S)
        connection.close()
        log(f"late {run} committed")


def sell_in_transaction(run: str, number: int, *, roll_back: bool) -> bool:
    """Try a transaction; return whether the database accepted it."""
    from django.db import InterfaceError, OperationalError, connection, transaction

    try:
        with transaction.atomic():
            sell(run, ordering_key_for(number), number)
            if roll_back:
                raise RolledBack
    except RolledBack:
        pass
    except (OperationalError, InterfaceError) as error:
        # Only the tables show whether such a transaction was committed.
        log(f"refused: {type(error).__name__}: {str(error).strip()}")
        connection.close()
        return False
    return True


def ordering_key_for(number: int) -> str:
    """Return the ordering key of a sale: a few sales in a row share a key."""
    return str(number // effort.IN_A_ROW % effort.KEYS)


def sell(run: str, ordering_key: str, number: int) -> None:
    """Write a sale and publish it; one thread makes all sales of a key, in the order of their numbers."""
    from outbox import publish
    from tests.faults.app.models import Sale

    sale = Sale.objects.create(id=uuid.uuid4(), run=run, ordering_key=ordering_key, number=number)
    publish("faults.sold", {"sale": str(sale.pk), "run": run}, key=f"{run}-{ordering_key}")


def log(line: str) -> None:
    """Write a line for the test that watches this process."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    django.setup()
    Publisher(Path(os.environ["OUTBOX_TEST_FOLDER"])).work()

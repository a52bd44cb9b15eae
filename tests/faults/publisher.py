"""A process that sells: a business row and its event in one transaction, over and over, whatever fails.

It obeys files of its folder: `run` holds the name of the run to sell for; while `late` exists one
transaction has sold, and stays open.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from itertools import count
from pathlib import Path

import django

from tests.faults import effort

PACE_S = 0.025
ROLL_BACK_EVERY = 5


class RolledBack(Exception):
    """Raised to undo a sale."""


class Publisher:
    """Sells for one run after the other, as the files in the folder say."""

    def __init__(self, folder: Path) -> None:
        self._run_file = folder / "run"
        self._late_file = folder / "late"
        self._pause = threading.Event()
        self._late: threading.Thread | None = None

    def work(self) -> None:
        """Sell until this process is killed."""
        tell("ready")
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
            refused += not sold(run, number, roll_back=number % ROLL_BACK_EVERY == 0)
            self._pause.wait(PACE_S)
        if self._late is not None:
            self._late.join()
            self._late = None
        tell(f"done {run} refused {refused}")

    def _sell_late(self, run: str) -> None:
        from django.db import connection, transaction

        with transaction.atomic():
            sell(run, "late", 0)
            tell(f"late {run} open")
            while self._late_file.exists():
                self._pause.wait(PACE_S)
        connection.close()
        tell(f"late {run} committed")


def sold(run: str, number: int, *, roll_back: bool) -> bool:
    """Try a transaction; return whether the database let it pass."""
    from django.db import InterfaceError, OperationalError, connection, transaction

    try:
        with transaction.atomic():
            sell(run, lane_of(number), number)
            if roll_back:
                raise RolledBack
    except RolledBack:
        pass
    except (OperationalError, InterfaceError) as error:
        # Whether such a transaction was committed the tables alone know.
        tell(f"refused: {type(error).__name__}: {str(error).strip()}")
        connection.close()
        return False
    return True


def lane_of(number: int) -> str:
    """Return the lane of a sale: a few in a row share one, and then it is another's turn."""
    return str(number // effort.IN_A_ROW % effort.LANES)


def sell(run: str, lane: str, number: int) -> None:
    """Write a sale, and publish it; only one thread sells in a lane, in the order of the numbers."""
    from outbox import publish
    from tests.faults.app.models import Sale

    sale = Sale.objects.create(id=uuid.uuid4(), run=run, lane=lane, number=number)
    publish("faults.sold", {"sale": str(sale.pk), "run": run}, key=f"{run}-{lane}")


def tell(line: str) -> None:
    """Say something to whoever watches."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    django.setup()
    Publisher(Path(os.environ["OUTBOX_TEST_FOLDER"])).work()

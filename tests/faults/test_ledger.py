"""The ledger detects rows that ran out of order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from .ledger import Ledger

pytestmark = pytest.mark.postgres

START = "timestamptz '2030-01-01'"


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    """Yield the ledger of a run with three sales of one ordering key and one sale of another."""
    with closing(Ledger(postgres_url)) as ledger:
        ledger.execute(
            "CREATE TEMPORARY TABLE faults_sale (id int, run text, ordering_key text, number int)",
            "CREATE TEMPORARY TABLE faults_effect"
            " (handler text, sale int, run text, began_at timestamptz, done_at timestamptz)",
            "INSERT INTO faults_sale"
            " VALUES (1, 'r', 'a', 1), (2, 'r', 'a', 2), (3, 'r', 'a', 4), (4, 'r', 'b', 3)",
        )
        yield ledger


def follow(ledger: Ledger, *runs: tuple[int, int, int | None]) -> None:
    """Record runs of the ordered handler: the sale, and the seconds of the beginning and the end."""
    for sale, began, done in runs:
        end = "NULL" if done is None else f"{START} + interval '{done} s'"
        ledger.execute(
            f"INSERT INTO faults_effect VALUES ('follow', {sale}, 'r', {START} + interval '{began} s', {end})"
        )


def test_sales_that_ran_one_by_one_are_in_order(ledger: Ledger) -> None:
    follow(ledger, (1, 0, 1), (2, 1, 2), (3, 3, 4), (4, 0, 9))
    assert ledger.count("r").out_of_order == 0


def test_a_second_run_after_the_next_sale_began_is_in_order(ledger: Ledger) -> None:
    follow(ledger, (1, 0, None), (1, 1, 2), (2, 3, 4), (1, 3, 8), (3, 5, 6))
    assert ledger.count("r").out_of_order == 0


def test_a_sale_that_began_before_an_earlier_one_was_done_is_out_of_order(ledger: Ledger) -> None:
    follow(ledger, (1, 0, 3), (2, 2, 4), (3, 5, 6))
    assert ledger.count("r").out_of_order == 1


def test_sales_after_one_that_was_never_done_are_out_of_order(ledger: Ledger) -> None:
    follow(ledger, (1, 0, None), (2, 2, 4), (3, 5, 6))
    assert ledger.count("r").out_of_order == 2


def test_an_effect_that_was_begun_and_never_done_is_lost(ledger: Ledger) -> None:
    follow(ledger, (1, 0, None), (2, 2, 4))
    assert ledger.count("r").lost == 4 * 3 - 1

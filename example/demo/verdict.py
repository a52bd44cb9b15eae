"""The check that counts: did exactly those effects happen that the commits promised?"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

EXAMPLES = 5


class Effect(NamedTuple):
    """One thing that a handler did, or should have done, for an order."""

    order_id: int
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"order {self.order_id}: {self.kind} {self.detail}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer to one question of the check."""

    passed: bool
    text: str
    examples: tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """Yield the answer and, if it is bad, what shows it."""
        yield f"{'PASS' if self.passed else 'FAIL'}  {self.text}"
        for example in self.examples[:EXAMPLES]:
            yield f"      {example}"
        if len(self.examples) > EXAMPLES:
            yield f"      … and {len(self.examples) - EXAMPLES:,} more"


def committed_orders(expected: Counter[Effect], actual: Counter[Effect], *, orders: int) -> Finding:
    """Find what is missing and what happened more often than it should."""
    missing = [f"missing: {effect} ({count} times)" for effect, count in (expected - actual).items()]
    surplus = [f"too much: {effect} ({count} times)" for effect, count in (actual - expected).items()]
    return Finding(
        passed=not missing and not surplus,
        text=f"{orders:,} committed orders: {expected.total():,} effects promised, "
        f"{(expected & actual).total():,} happened, {len(missing):,} missing, {len(surplus):,} too many",
        examples=(*missing, *surplus),
    )


def rolled_back_orders(rolled_back: Set[int], actual: Iterable[Effect], *, rows: int) -> Finding:
    """Find what orders that never were left behind; `rows` counts their orders and events in the tables."""
    ghosts = sorted(str(effect) for effect in actual if effect.order_id in rolled_back)
    return Finding(
        passed=not ghosts and not rows,
        text=f"{len(rolled_back):,} rolled-back orders: "
        f"{rows:,} rows and {len(ghosts):,} effects left behind",
        examples=tuple(ghosts),
    )


def stock(expected: Mapping[str, int], actual: Mapping[str, int]) -> Finding:
    """Find products of which there are more or fewer than the committed orders leave."""
    wrong = [
        f"{product}: {actual.get(product)} in stock, should be {count}"
        for product, count in expected.items()
        if actual.get(product) != count
    ]
    return Finding(
        passed=not wrong,
        text=f"{len(expected):,} products: stock adds up for {len(expected) - len(wrong):,}",
        examples=tuple(wrong),
    )


def spending(expected: Mapping[str, Decimal], actual: Mapping[str, Decimal]) -> Finding:
    """Find customers who have spent more or less than their committed orders say."""
    wrong = [
        f"{customer}: has spent {actual.get(customer)}, should be {total}"
        for customer, total in expected.items()
        if actual.get(customer) != total
    ]
    return Finding(
        passed=not wrong,
        text=f"{len(expected):,} customers: spending adds up for {len(expected) - len(wrong):,}",
        examples=tuple(wrong),
    )


def office(expected: Counter[str], actual: Counter[str]) -> Finding:
    """Find entries of the office, audit and report, that are missing or were never promised."""
    missing = [f"missing: {text}" for text in (expected - actual).elements()]
    surplus = [f"too much: {text}" for text in (actual - expected).elements()]
    return Finding(
        passed=not missing and not surplus,
        text=f"The office: {expected.total():,} entries promised, {(expected & actual).total():,} written, "
        f"{len(surplus):,} too many",
        examples=(*missing, *surplus),
    )

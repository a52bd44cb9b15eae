"""The check: exactly the effects of the committed orders must exist."""

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
    """The result of one part of the check."""

    passed: bool
    text: str
    examples: tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """Yield the result, and examples if the part failed."""
        yield f"{'PASS' if self.passed else 'FAIL'}  {self.text}"
        for example in self.examples[:EXAMPLES]:
            yield f"      {example}"
        if len(self.examples) > EXAMPLES:
            yield f"      … and {len(self.examples) - EXAMPLES:,} more"


def committed_orders(expected: Counter[Effect], actual: Counter[Effect], *, orders: int) -> Finding:
    """Compare the effects of committed orders: none may be missing or repeated."""
    missing = [f"missing: {effect} ({count} times)" for effect, count in (expected - actual).items()]
    surplus = [f"surplus: {effect} ({count} times)" for effect, count in (actual - expected).items()]
    return Finding(
        passed=not missing and not surplus,
        text=f"{orders:,} committed orders: {expected.total():,} effects expected, "
        f"{(expected & actual).total():,} found, {len(missing):,} missing, {len(surplus):,} surplus",
        examples=(*missing, *surplus),
    )


def rolled_back_orders(rolled_back: Set[int], actual: Iterable[Effect], *, rows: int) -> Finding:
    """Check that rolled-back orders have no effects; `rows` counts their orders and events in the tables."""
    leftovers = sorted(str(effect) for effect in actual if effect.order_id in rolled_back)
    return Finding(
        passed=not leftovers and not rows,
        text=f"{len(rolled_back):,} rolled-back orders: "
        f"{rows:,} rows and {len(leftovers):,} effects left behind",
        examples=tuple(leftovers),
    )


def stock(expected: Mapping[str, int], actual: Mapping[str, int]) -> Finding:
    """Compare the stock of each product with the stock that the committed orders leave."""
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
    """Compare the spending of each customer with the total of the committed orders."""
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
    """Compare the audit entries and the report with the expected ones."""
    missing = [f"missing: {text}" for text in (expected - actual).elements()]
    surplus = [f"surplus: {text}" for text in (actual - expected).elements()]
    return Finding(
        passed=not missing and not surplus,
        text=f"The office: {expected.total():,} entries expected, {(expected & actual).total():,} found, "
        f"{len(surplus):,} surplus",
        examples=(*missing, *surplus),
    )

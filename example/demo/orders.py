"""Place the demo's orders from several threads, as several web requests would, and keep a ledger of them."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, pairwise
from threading import Event

from django.db import connection

from example.shop.handlers import LARGE, LARGE_SUBJECT, SUBJECTS
from example.shop.models import Customer, OrderStatus, Product
from example.shop.services import move_order, place_and_roll_back, place_order
from outbox import context

from .findings import Effect
from .screen import Advance

THREADS = 4
POLL_S = 0.1
# Every third committed order is paid at once, and every ninth cancelled after that.
PAID_EVERY, CANCELLED_EVERY = 3, 9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An order to place, and its moves or its roll-back."""

    customer: Customer
    quantities: dict[Product, int]
    moves: tuple[OrderStatus, ...] = ()
    roll_back: bool = False


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A line of the ledger: a placed order."""

    order_id: int
    plan: Plan

    @property
    def total(self) -> Decimal:
        """The price of the order."""
        return sum((product.price * count for product, count in self.plan.quantities.items()), Decimal(0))

    @property
    def spent(self) -> Decimal:
        """The amount that the customer has spent on the order."""
        return self.total if self.plan.moves[-1:] == (OrderStatus.PAID,) else Decimal(0)

    def effects(self) -> Iterator[Effect]:
        """Yield each effect that the commits of this order must have."""
        if self.plan.roll_back:
            return
        yield Effect(self.order_id, "analytics", "shop.order_placed")
        yield Effect(self.order_id, "history", "created")
        yield Effect(self.order_id, "invoice")
        if self.total >= LARGE:
            yield Effect(self.order_id, "mail", LARGE_SUBJECT)
        for status in self.statuses:
            yield Effect(self.order_id, "mail", SUBJECTS[status])
            for product, quantity in self.stock_changes(status).items():
                yield Effect(self.order_id, "stock", f"{product.name} {quantity:+d}")
        for old, new in pairwise(self.statuses):
            yield Effect(self.order_id, "analytics", "shop.order_status_changed")
            yield Effect(self.order_id, "history", f"{old} → {new}")

    @property
    def statuses(self) -> tuple[OrderStatus, ...]:
        """The statuses that the order has had."""
        return () if self.plan.roll_back else (OrderStatus.PENDING, *self.plan.moves)

    def stock_changes(self, status: OrderStatus) -> dict[Product, int]:
        """Return the changes of stock that go with a status."""
        sign = {OrderStatus.PENDING: -1, OrderStatus.CANCELLED: +1}.get(status, 0)
        return {product: sign * quantity for product, quantity in self.plan.quantities.items() if sign}


def plan_orders(total: int, *, rolled_back: int) -> list[Plan]:
    """Plan `total` orders; `rolled_back` of them, at random, will be rolled back."""
    generator = random.Random(total)
    customers, products = list(Customer.objects.all()), list(Product.objects.order_by("pk"))
    to_roll_back = set(generator.sample(range(total), rolled_back))
    return [
        Plan(
            customer=generator.choice(customers),
            quantities=_basket(generator, products),
            moves=() if number in to_roll_back else _moves(number),
            roll_back=number in to_roll_back,
        )
        for number in range(total)
    ]


def place_all(plans: Sequence[Plan], advance: Advance) -> list[Placed]:
    """Place the orders from several threads and return the ledger."""
    ledger: list[Placed] = []
    stop = Event()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            shares = [plans[offset::THREADS] for offset in range(THREADS)]
            threads = [pool.submit(_place_some, share, ledger, stop) for share in shares]
            _watch(threads, ledger, advance)
        finally:
            stop.set()
    return ledger


def _watch(threads: Sequence[Future[None]], ledger: Sequence[Placed], advance: Advance) -> None:
    running = set(threads)
    while running:
        done, running = wait(running, timeout=POLL_S)
        for thread in done:
            thread.result()
        advance(len(ledger))


def _place_some(plans: Sequence[Plan], ledger: list[Placed], stop: Event) -> None:
    try:
        for plan in plans:
            if stop.is_set():
                return
            with context(source="the demo"):
                ledger.append(Placed(order_id=_carry_out(plan), plan=plan))
    finally:
        # Django keeps a connection for each thread and closes it only for requests.
        connection.close()


def _carry_out(plan: Plan) -> int:
    if plan.roll_back:
        return place_and_roll_back(plan.customer, plan.quantities)
    order = place_order(plan.customer, plan.quantities)
    for status in plan.moves:
        move_order(order.pk, status)
    return order.pk


def _moves(number: int) -> tuple[OrderStatus, ...]:
    moves = (OrderStatus.PAID,) if number % PAID_EVERY == 0 else ()
    return (*moves, OrderStatus.CANCELLED) if number % CANCELLED_EVERY == 0 else moves


def _basket(generator: random.Random, products: Sequence[Product]) -> dict[Product, int]:
    chosen = Counter(generator.choices(products, k=generator.randint(1, 4)))
    return dict(islice(chosen.items(), 3))

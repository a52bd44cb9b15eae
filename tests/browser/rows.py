"""Rows of an outbox in trouble: what an operator sees on a bad day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.db.models.functions import Now

from outbox.models import BacklogSample, Delivery, HandlerStats, PausedHandler, ProcessHeartbeat, Tally
from tests.support.factories import make_delivery, make_event

MAIL, STOCK = "example.shop.handlers.mail_confirmation", "example.shop.handlers.take_from_stock"
ANALYTICS, HISTORY = "example.shop.handlers.count_in_analytics", "example.shop.handlers.write_history"


def make_processes() -> None:
    """Write a relay, a worker and a dead worker."""
    common = {"version": "0.1.0", "seen_at": Now()}
    relay, worker = ProcessHeartbeat.Kind.RELAY, ProcessHeartbeat.Kind.WORKER
    rows = [
        {
            "kind": relay,
            "host": "web1",
            "pid": 411,
            "dispatched": 53_210,
            "last_dispatch_at": Now(),
            **common,
        },
        {"kind": worker, "host": "worker1", "pid": 620, "threads": 8, "queues": "mail,stock", **common},
        {
            "kind": worker,
            "host": "worker2",
            "pid": 588,
            "threads": 8,
            "queues": "mail,stock",
            **common,
            "seen_at": Now() - timedelta(minutes=42),
        },
    ]
    for row in rows:
        ProcessHeartbeat.objects.create(id=uuid4(), **row)


def make_failures() -> None:
    """Write failed deliveries of two errors, and a blocked key."""
    event = make_event("shop.order_placed", {"order_id": 4711, "mail": "mia@example.com"}, key="order-4711")
    for number in range(40):
        error = f"Traceback …\nConnectionRefusedError: [Errno 111] mail{number % 4}.example.com:25"
        finished_at = Now() - timedelta(minutes=5, seconds=20 * number)
        make_delivery(event, "failed", handler=MAIL, queue="mail", error=error, finished_at=finished_at)
    make_delivery(event, "failed", handler=MAIL, queue="mail", error="ValueError: no address")
    error = "IntegrityError: stock of product 17 is negative"
    make_delivery(event, "failed", handler=STOCK, queue="stock", key="product-17", error=error)
    for _ in range(3):
        make_delivery(event, "pending", handler=STOCK, queue="stock", key="product-17", waits_for="key")


def make_backlog() -> None:
    """Write a paused handler, and due and unconfirmed deliveries."""
    PausedHandler.objects.create(handler=HISTORY, reason="the archive moves")
    for _ in range(12):
        make_delivery(handler=HISTORY, queue="office", waits_for=Delivery.WaitsFor.RESUME)
        make_delivery(handler=MAIL, queue="mail")
    for _ in range(7):
        make_delivery(state="dispatched", handler=STOCK, queue="stock")


def make_history(minutes: int = 90, handlers: Sequence[str] = (MAIL, STOCK, ANALYTICS)) -> None:
    """Write statistics of three handlers and samples of each minute, with a peak of failures."""
    this_minute = datetime.now(UTC).replace(second=0, microsecond=0)
    for ago in range(minutes):
        at = this_minute - timedelta(minutes=ago)
        runs = int(900 + 350 * math.sin(ago / 9)) // (2 if ago == 0 else 1)
        failed = max(0, 60 - 6 * abs(ago - 14))
        for handler, share in zip(handlers, (0.5, 0.4, 0.1), strict=True):
            tally = Tally(dispatched=int(runs * share))
            for _ in range(3):
                tally.count("succeeded", 0.02 + 0.01 * math.cos(ago))
            tally.succeeded = int((runs - failed) * share)
            tally.retried, tally.failed = (2 * failed, failed) if handler == handlers[0] else (0, 0)
            HandlerStats.objects.create(handler=handler, bucket=at, **_columns(tally))
        if ago:
            backlog = 40 + 12 * failed
            BacklogSample.objects.create(
                minute=at, published=runs // 2, due=backlog, unconfirmed=20, oldest_s=0.4 + failed / 2
            )


def make_action() -> None:
    """Write an action of an operator."""
    user, _created = User.objects.get_or_create(username="mia")
    row = Delivery.objects.order_by("pk").first()
    LogEntry.objects.log_actions(user.pk, [row], CHANGE, "Retried.")


def make_bad_day() -> None:
    """Write all of these rows."""
    make_processes()
    make_failures()
    make_backlog()
    make_history()
    make_action()


def _columns(tally: Tally) -> dict[str, object]:
    names = (
        "dispatched",
        "succeeded",
        "retried",
        "failed",
        "duration_total_s",
        "duration_max_s",
        "histogram",
    )
    return {name: getattr(tally, name) for name in names}

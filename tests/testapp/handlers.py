"""Handlers that record their effects in the `Effect` table."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models.signals import post_delete, post_save

from outbox import ReceivedEvent, current_event, handler, receiver

from .models import Effect, Shipment
from .signals import order_paid

QUEUE = f"{settings.TEST_PREFIX}default"
OTHER_QUEUE = f"{settings.TEST_PREFIX}other"


# Not in the database: async code would leave a connection open in a thread of asgiref.
seen_in_async_code: list[ReceivedEvent | None] = []


class Refused(Exception):
    """Raised by the failing handlers."""


def record_effect(name: str, event: ReceivedEvent) -> None:
    """Write an effect of a handler's event."""
    Effect.objects.create(handler=name, event_id=event.id, key=event.key, detail={"payload": event.payload})


@handler("test.recorded", queue_name=QUEUE, name="record")
def record(event: ReceivedEvent) -> None:
    record_effect("record", event)


@handler("test.*", queue_name=OTHER_QUEUE, name="record_all")
def record_all(event: ReceivedEvent) -> None:
    record_effect("record_all", event)


@handler("flaky.*", queue_name=QUEUE, name="flaky", max_retries=5, min_backoff=10, max_backoff=50)
def flaky(event: ReceivedEvent) -> None:
    """Fail the first time, succeed the second."""
    tries = Effect.objects.filter(handler="flaky-try", event_id=event.id).count()
    record_effect("flaky-try", event)
    if not tries:
        raise Refused("not the first time")
    record_effect("flaky", event)


@handler("broken.*", queue_name=QUEUE, name="broken", max_retries=1, min_backoff=10, max_backoff=10)
def broken(event: ReceivedEvent) -> None:
    """Fail until the event has an effect named `repaired`."""
    if not Effect.objects.filter(handler="repaired", event_id=event.id).exists():
        raise Refused(f"cannot handle {event.payload!r}")
    record_effect("broken", event)


@handler("filed.*", queue_name=QUEUE, name="filed")
def filed(event: ReceivedEvent) -> None:
    """Write a line to `begun` and to `done`, without the database; wait in between while `hold` exists."""
    folder = Path(os.environ["OUTBOX_TEST_FOLDER"])
    add_line(folder / "begun", str(event.id))
    while (folder / "hold").exists():
        time.sleep(0.02)
    add_line(folder / "done", str(event.id))


@handler("limited.*", queue_name=QUEUE, name="limited", time_limit=50, max_retries=0)
def limited(event: ReceivedEvent) -> None:
    """Run until Dramatiq's time limit interrupts it."""
    while True:
        time.sleep(0.02)


class Boot(logging.Handler):
    """Notices the log line of Dramatiq's worker process when it has booted."""

    def __init__(self) -> None:
        super().__init__()
        self.is_complete = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "ready for action" in record.getMessage():
            self.is_complete.set()


boot = Boot()
logging.getLogger("dramatiq").addHandler(boot)


@handler("deadly.*", queue_name=QUEUE, name="deadly")
def deadly(event: ReceivedEvent) -> None:
    """Write a line to `deaths`, and die as if the kernel killed the process for its memory."""
    # If a worker dies while it reports that it has booted, the lock of a `multiprocessing.Event` stays taken,
    # and Dramatiq's master process waits without end.
    assert boot.is_complete.wait(30)
    add_line(Path(os.environ["OUTBOX_TEST_FOLDER"]) / "deaths", str(event.id))
    os.kill(os.getpid(), signal.SIGKILL)


def add_line(path: Path, line: str) -> None:
    """Append a line to a file that several processes write."""
    with path.open("a") as file:
        file.write(f"{line}\n")


@handler("context.*", queue_name=QUEUE, name="async_context")
async def async_context(event: ReceivedEvent) -> None:
    """Record the event that is current in async code."""
    seen_in_async_code.append(current_event())


@receiver(post_save, sender="testapp.Shipment", queue_name=QUEUE, name="shipment_saved")
def shipment_saved(sender: type[Shipment], instance: Shipment, created: bool, **kwargs: Any) -> None:
    Effect.objects.create(
        handler="shipment_saved",
        key=instance.address,
        detail={
            "sender": sender.__name__,
            "created": created,
            "raw": kwargs["raw"],
            "using": kwargs["using"],
            "signal": kwargs["signal"] is post_save,
            "weight": str(instance.weight),
        },
    )


@receiver(post_delete, sender=Shipment, queue_name=QUEUE, name="shipment_deleted")
def shipment_deleted(sender: type[Shipment], instance: Shipment, **kwargs: Any) -> None:
    Effect.objects.create(handler="shipment_deleted", key=instance.address, detail={"pk": instance.pk})


@receiver(order_paid, queue_name=QUEUE, name="paid_mail")
def paid_mail(sender: object, order_id: int, **kwargs: Any) -> None:
    Effect.objects.create(handler="paid_mail", key=str(order_id))


@receiver(order_paid, queue_name=QUEUE, name="paid_stock")
def paid_stock(sender: object, order_id: int, **kwargs: Any) -> None:
    Effect.objects.create(handler="paid_stock", key=str(order_id))


@receiver(order_paid, queue_name=QUEUE, name="paid_analytics")
def paid_analytics(sender: object, order_id: int, **kwargs: Any) -> None:
    Effect.objects.create(handler="paid_analytics", key=str(order_id))

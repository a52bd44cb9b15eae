"""The delivery options that `@handler` and `@receiver` share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from outbox.errors import RegistrationError
from outbox.registry import BatchOptions, DeliveryOptions, OnFailure

DEFAULT_BATCH_WAIT = timedelta(seconds=5)


def delivery_options(
    *,
    ordered: bool,
    on_failure: OnFailure,
    transactional: bool,
    batch_size: int | None,
    batch_wait: timedelta | float,
    former_names: Iterable[str],
) -> DeliveryOptions:
    """Return the delivery options of a handler.

    Args:
        ordered: deliver the events of one key one at a time, in order. The key of a receiver is the instance.
        on_failure: for ordered handlers. With `"block"`, a failed delivery blocks its key until an operator
            retries or discards it. With `"skip"`, the next delivery goes on.
        transactional: run the function in a transaction that also records the success of the delivery. The
            function's effects on the event's database then happen exactly once. Not for async functions.
        batch_size: call the function with a list of at most this many events, in the order in which they
            are due. The list of a receiver has a dict of arguments for each send. The first retry of a
            failed batch has all its events; if it fails again, the events are delivered one by one.
        batch_wait: how long the oldest event of a batch waits for a full batch: a timedelta, or seconds.
        former_names: names that the handler had before. Deliveries and messages of these names run this
            function.

    Raises:
        RegistrationError: if options contradict each other, or a value is out of range.
    """
    return DeliveryOptions(
        ordered=ordered,
        on_failure=on_failure,
        transactional=transactional,
        batch=None if batch_size is None else _batch_options(batch_size, batch_wait),
        former_names=checked_names(former_names),
    )


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the former names of a handler.

    Raises:
        RegistrationError: for a single string, whose letters would be taken for names.
    """
    if isinstance(names, str):
        raise RegistrationError(f"former_names is the string {names!r}; give a list, such as [{names!r}]")
    return tuple(names)


def _batch_options(size: int, wait: timedelta | float) -> BatchOptions:
    return BatchOptions(size=size, wait=wait if isinstance(wait, timedelta) else timedelta(seconds=wait))

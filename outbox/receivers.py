"""The `@receiver` decorator: a signal's receiver that runs in a worker, exactly when the sender commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import dramatiq
from django.dispatch import Signal

from .actors import OutboxActor, declare
from .collectors import Subscription, carries, subscribe
from .conditions import Condition, signal_condition, split_condition
from .errors import InstanceMissing, InvalidPayload, OutboxError
from .events import ReceivedEvent
from .registry import Arguments, Manner, OnFailure, registry
from .runs import Run
from .serialization import decode_many
from .signal_names import signal_named
from .subscriptions import DEFAULT_BATCH_WAIT, batching

Missing = Literal["discard", "fail", "pass"]


class _Unusable(InvalidPayload):
    """Raised for what another try of the same message would not mend, so that Dramatiq makes none."""


def receiver(
    signal: Signal | Iterable[Signal],
    *,
    sender: Any = None,
    when: Condition | Callable[..., bool] | None = None,
    name: str | None = None,
    missing: Missing = "discard",
    snapshot: bool | None = None,
    ordered: bool = False,
    on_failure: OnFailure = "block",
    transactional: bool = False,
    batch_size: int | None = None,
    batch_wait: timedelta | float = DEFAULT_BATCH_WAIT,
    pack: int | None = None,
    weak: bool = True,
    dispatch_uid: Any = None,
    **actor_options: Any,
) -> Callable[[Callable[..., Any]], OutboxActor]:
    """Run a receiver in a worker, once the sender's transaction has committed.

    Takes the place of `django.dispatch.receiver`: change the import, and the receiver is durable.

    Args:
        signal: a signal, or several.
        sender: as for Django; a model may be given as `"app.Model"`.
        when: a condition, decided at send time; a send that does not meet it writes nothing.
        name: the handler's name, the function's dotted path if not given.
        missing: what to do if an instance is gone when the receiver runs: discard the delivery with the
            reason, fail it, or pass None.
        snapshot: carry the instance's field values instead of reading its row again; the default is to
            do so where the row cannot be read: before a save, and around a delete.
        ordered: run the deliveries of one instance one after the other.
        batch_size: call the receiver with a list of up to so many sends, each a dict of the arguments that
            it would have got alone.
        weak, dispatch_uid: accepted as Django's are; a handler lives as long as its module, and the name
            already tells receivers apart.
        on_failure, transactional, batch_wait, pack, actor_options: as for `handler`.

    Raises:
        DuplicateHandler: if the name is taken.
        RegistrationError: for arguments that contradict each other or can never work.
    """
    signals = [signal] if isinstance(signal, Signal) else list(signal)
    condition = signal_condition(when) if when is not None and not isinstance(when, Condition) else when

    manner = Manner(
        ordered=ordered,
        on_failure=on_failure,
        transactional=transactional,
        batch=batching(batch_size, batch_wait),
        pack=pack,
    )

    def decorate(function: Callable[..., Any]) -> OutboxActor:
        plain, inner = (function, None) if isinstance(function, OutboxActor) else split_condition(function)
        # Receivers may be stacked, to listen to several senders; the outer one only adds a subscription.
        actor = (
            plain if isinstance(plain, OutboxActor) else _declare(plain, name, missing, manner, actor_options)
        )
        handler = registry.get(actor.actor_name)
        # A condition that decorates the function is decided at send time too, like one that is given.
        wanted = condition & inner if condition and inner else condition or inner
        for each in signals:
            carry = carries(each) if snapshot is None else snapshot
            subscribe(each, sender, Subscription(handler, wanted, carry))
        return actor

    return decorate


def _declare(
    function: Callable[..., Any],
    name: str | None,
    missing: Missing,
    manner: Manner,
    actor_options: dict[str, Any],
) -> OutboxActor:
    return declare(
        function,
        kind="signal",
        name=name,
        manner=manner,
        arguments=partial(_batched_arguments if manner.batch else _arguments, missing),
        actor_options=_failing_at_once(missing, actor_options),
    )


def _failing_at_once(missing: Missing, options: dict[str, Any]) -> dict[str, Any]:
    if "throws" not in dramatiq.get_broker().actor_options:
        return options
    throws = options.get("throws", ())
    given = throws if isinstance(throws, tuple) else (throws,)
    # A row that is gone does not come back: retrying would only put off the failure.
    gone = (InstanceMissing,) if missing == "fail" else ()
    return {**options, "throws": (*given, *gone, _Unusable)}


def _arguments(missing: Missing, run: Run) -> Arguments:
    sends = _decode(missing, run)
    return (), sends[0] if sends else {}


def _batched_arguments(missing: Missing, run: Run) -> Arguments:
    return (_decode(missing, run),), {}


def _decode(missing: Missing, run: Run) -> list[dict[str, Any]]:
    """Decode the sends of a run, with one query per model however many they are."""
    sends = []
    for delivery, event, decoded in zip(run.deliveries, run.events, _decoded(missing, run), strict=True):
        if isinstance(decoded, InstanceMissing) and missing == "discard":
            run.discarded[delivery] = str(decoded)
        elif isinstance(decoded, Exception):
            raise decoded
        else:
            sends.append({"signal": signal_named(event.payload["signal"]), **decoded})
    return sends


def _decoded(missing: Missing, run: Run) -> list[dict[str, Any] | OutboxError]:
    encoded = [_encoded(event.payload, run.handler) for event in run.events]
    sound = [
        (event, one) for event, one in zip(run.events, encoded, strict=True) if not isinstance(one, _Unusable)
    ]
    decoded = iter(_decode_sound(missing, sound))
    return [one if isinstance(one, _Unusable) else next(decoded) for one in encoded]


def _decode_sound(
    missing: Missing, sends: Sequence[tuple[ReceivedEvent, dict[str, Any]]]
) -> list[dict[str, Any] | OutboxError]:
    # Of the many rows of a bulk operation some may be gone without making the others less wanted.
    many = [event.payload.get("many") if missing == "discard" else None for event, _encoded in sends]
    encoded = [one for _event, one in sends]
    if not any(many):
        return decode_many(encoded, missing=missing)
    strict = iter(decode_many([one for one, name in zip(encoded, many, strict=True) if not name]))
    lenient = iter(
        decode_many([one for one, name in zip(encoded, many, strict=True) if name], missing="pass")
    )
    return [
        _present(next(lenient), one, name) if name else next(strict)
        for one, name in zip(encoded, many, strict=True)
    ]


def _present(
    decoded: dict[str, Any] | OutboxError, encoded: Mapping[str, Any], name: str
) -> dict[str, Any] | OutboxError:
    if isinstance(decoded, OutboxError):
        return decoded
    present = [instance for instance in decoded[name] if instance is not None]
    if decoded[name] and not present:
        return InstanceMissing(encoded[name][0]["model"], [reference["pk"] for reference in encoded[name]])
    return {**decoded, name: present}


def _encoded(payload: Any, handler: str) -> dict[str, Any] | _Unusable:
    """Return the encoded arguments of one send, or the error if no send has written this payload."""
    try:
        carried = payload["snapshots" if handler in payload.get("carried", ()) else "arguments"]
        encoded = {**carried, **payload.get("extra", {}).get(handler, {})}
        many = payload.get("many")
        sound = isinstance(payload["signal"], str) and "sender" in encoded and (not many or many in encoded)
    except (AttributeError, LookupError, TypeError):
        sound = False
    if sound:
        return encoded
    return _Unusable(
        "payload",
        "is not the record of a signal's send; it was written or changed by hand, so publish it with "
        "signal.send() and discard this delivery",
    )

"""The arguments of a background receiver, decoded from the events of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from outbox.errors import InstanceMissing, InvalidPayload, OutboxError
from outbox.registry import Arguments, registry
from outbox.run import Run
from outbox.serialization import decode_many

from .names import signal_named
from .payload import EncodedSend, send_to

Missing = Literal["discard", "fail", "pass"]


class MalformedSend(InvalidPayload):
    """Raised for a payload that is not a recorded send; a retry cannot succeed, so Dramatiq makes none."""

    def __init__(self) -> None:
        super().__init__(
            "payload",
            "is not the record of a signal's send; it was written or changed by hand, so publish it with "
            "signal.send() and discard this delivery",
        )


def arguments_of_send(missing: Missing, run: Run) -> Arguments:
    """Return the arguments of a receiver that gets one send; none if its delivery is discarded."""
    sends = _decode(missing, run)
    return (), sends[0] if sends else {}


def arguments_of_batch(missing: Missing, run: Run) -> Arguments:
    """Return the argument of a receiver that gets a list of sends."""
    return (_decode(missing, run),), {}


def _decode(missing: Missing, run: Run) -> list[dict[str, Any]]:
    """Decode the sends of a run, and put deliveries without their instance into `run.discarded`."""
    sends = []
    names = (run.handler, *registry.get(run.handler).former_names)
    decoded = _decoded_sends(missing, [send_to(names, event.payload) for event in run.events])
    for delivery, event, send in zip(run.deliveries, run.events, decoded, strict=True):
        if isinstance(send, InstanceMissing) and missing == "discard":
            run.discarded[delivery] = str(send)
        elif isinstance(send, Exception):
            raise send
        else:
            sends.append({"signal": signal_named(event.payload["signal"]), **send})
    return sends


def _decoded_sends(
    missing: Missing, encoded: Sequence[EncodedSend | None]
) -> list[dict[str, Any] | OutboxError]:
    """Return the arguments or the error of each send, with one query per model for all sends together."""
    sends = {position: send for position, send in enumerate(encoded) if send is not None}
    # If some rows of a bulk operation are deleted, the receiver still gets the other rows.
    bulk = {
        position: send for position, send in sends.items() if missing == "discard" and send.instances_argument
    }
    others = {position: send for position, send in sends.items() if position not in bulk}
    decoded = _decode_group(others, missing)
    for position, found in _decode_group(bulk, "pass").items():
        decoded[position] = _without_missing(found, bulk[position])
    return [decoded[position] if position in decoded else MalformedSend() for position in range(len(encoded))]


def _decode_group(
    sends: Mapping[int, EncodedSend], missing: Missing
) -> dict[int, dict[str, Any] | OutboxError]:
    if not sends:
        return {}
    decoded = decode_many([send.arguments for send in sends.values()], missing=missing)
    return dict(zip(sends, decoded, strict=True))


def _without_missing(
    decoded: dict[str, Any] | OutboxError, send: EncodedSend
) -> dict[str, Any] | OutboxError:
    if isinstance(decoded, OutboxError):
        return decoded
    name = send.instances_argument
    existing = [instance for instance in decoded[name] if instance is not None]
    if decoded[name] and not existing:
        references = send.arguments[name]
        return InstanceMissing(references[0]["model"], [reference["pk"] for reference in references])
    return {**decoded, name: existing}

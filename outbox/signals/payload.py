"""The payload of a recorded send: the recorder writes it, receivers and `OutboxSignal.recent()` read it.

Its members are described in docs/reference/handlers.md, "How a send is stored".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbox.serialization import encode_arguments


@dataclass(frozen=True, slots=True)
class EncodedSend:
    """The encoded arguments of one receiver.

    Args:
        instances_argument: the argument that lists the instances of a bulk operation; empty if there is none.
    """

    arguments: dict[str, Any]
    instances_argument: str


def encode_send(
    name: str,
    arguments: Mapping[str, Any],
    *,
    with_references: bool,
    snapshot_handlers: Sequence[str],
    condition_arguments: Mapping[str, Mapping[str, Any]],
    instances_argument: str,
) -> dict[str, Any]:
    """Return the payload of a send.

    Args:
        name: the name of the signal.
        with_references: whether to add the arguments with saved instances by reference.
        snapshot_handlers: the handlers that get saved instances with their field values.
        condition_arguments: by handler, the arguments that its condition adds.

    Raises:
        UnserializableArgument: if a value cannot be encoded.
    """
    payload: dict[str, Any] = {"signal": name}
    if snapshot_handlers:
        payload["snapshot_handlers"] = list(snapshot_handlers)
        payload["snapshots"] = encode_arguments(arguments, signal=name, snapshot=True)
    if with_references:
        payload["arguments"] = encode_arguments(arguments, signal=name)
    if condition_arguments:
        payload["condition_arguments"] = {
            handler: encode_arguments(added, signal=name) for handler, added in condition_arguments.items()
        }
    if instances_argument:
        payload["instances_argument"] = instances_argument
    return payload


def send_to(names: Collection[str], payload: Any) -> EncodedSend | None:
    """Return the encoded send of one handler, or None if the payload is malformed.

    Args:
        names: the present and the former names of the handler.
    """
    try:
        with_snapshot = any(name in payload.get("snapshot_handlers", ()) for name in names)
        arguments = {**payload["snapshots" if with_snapshot else "arguments"]}
        for name in names:
            arguments |= payload.get("condition_arguments", {}).get(name, {})
        instances = payload.get("instances_argument") or ""
        valid = (
            isinstance(payload["signal"], str)
            and "sender" in arguments
            and (not instances or instances in arguments)
        )
    except (AttributeError, LookupError, TypeError):
        return None
    return EncodedSend(arguments, instances) if valid else None


def encoded_arguments(payload: Any) -> Mapping[str, Any]:
    """Return the arguments with saved instances by reference; none if the payload is not a recorded send."""
    # A project can publish other payloads to the topic of a signal.
    arguments = payload.get("arguments") if isinstance(payload, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}

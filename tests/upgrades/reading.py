"""Finds the members of a message that a worker reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dramatiq

from outbox.run import Run

Reads = dict[str, str]


class _Recorded(dict[str, Any]):
    """A JSON object that records which of its members are read."""

    def __init__(self, content: Mapping[str, Any], path: str, reads: Reads) -> None:
        super().__init__({key: _recorded(value, f"{path}.{key}", reads) for key, value in content.items()})
        self._path = path
        self._reads = reads

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self._reads[f"{self._path}.{key}"] = type(value).__mro__[-2].__name__
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  # dict.get() would record nothing


def reads_of(body: Mapping[str, Any]) -> Reads:
    """Return the members that this code reads of a message, by their paths, with their types."""
    reads: Reads = {name: type(body[name]).__name__ for name in ("actor_name", "message_id", "queue_name")}
    content = dict(body)
    content["options"] = _recorded(content["options"], "options", reads)
    content["args"] = _recorded(content["args"], "args", reads)
    run = Run.from_message(dramatiq.Message(**content))
    assert run is not None
    assert run.events
    return reads


def lacks(body: Mapping[str, Any], reads: Reads) -> list[str]:
    """Return the recorded members that are missing or have another type."""
    found = dict(_members(body, ""))
    return [f"{path}: {kind}" for path, kind in reads.items() if kind not in found.get(path, ())]


def _recorded(value: Any, path: str, reads: Reads) -> Any:
    if isinstance(value, dict):
        return _Recorded(value, path, reads)
    # All elements of a list have one path, so their number does not matter.
    return [_recorded(one, f"{path}[]", reads) for one in value] if isinstance(value, list) else value


def _members(value: Any, path: str) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(value, dict):
        inner = [
            member for key, one in value.items() for member in _members(one, f"{path}.{key}" if path else key)
        ]
    elif isinstance(value, list):
        inner = [member for one in value for member in _members(one, f"{path}[]")]
    else:
        inner = []
    return [(path, (type(value).__name__,)), *inner]


def parse(body: bytes) -> dict[str, Any]:
    """Return the content of an encoded message."""
    content: dict[str, Any] = json.loads(body)
    return content

"""The expectations of a test about an event, and the differences of an event from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from outbox.models import Event
from outbox.topics import check_pattern, compile_pattern

MAX_SHOWN_CHARS = 200


class _Unset:
    def __repr__(self) -> str:
        return "…"


UNSET: Final[Any] = _Unset()


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The expected parts of an event; a part that is not set may have any value.

    Raises:
        InvalidTopic: if the topic is neither a dotted name nor a pattern.
    """

    topic: str
    payload: Any = UNSET
    payload__contains: Any = UNSET
    key: Any = UNSET
    headers__contains: Any = UNSET

    def __post_init__(self) -> None:
        check_pattern(self.topic)

    def __str__(self) -> str:
        wanted = {
            "key=": self.key,
            "payload ": self.payload,
            "payload containing ": self.payload__contains,
            "headers containing ": self.headers__contains,
        }
        parts = [f"{name}{shown(value)}" for name, value in wanted.items() if value is not UNSET]
        return " with ".join([repr(self.topic), *filter(None, [", ".join(parts)])])

    def has_topic(self, event: Event) -> bool:
        """Return whether the event's topic is the expected one."""
        return compile_pattern(self.topic).fullmatch(event.topic) is not None

    def differences(self, event: Event) -> list[str]:
        """Describe the differences of an event of this topic."""
        return [
            *_differing("key", self.key, event.key),
            *_differing("payload", self.payload, event.payload),
            *_lacking("payload", self.payload__contains, event.payload),
            *_lacking("headers", self.headers__contains, event.headers),
        ]


def _differing(path: str, expected: Any, found: Any) -> Iterator[str]:
    """Yield the differences of two JSON values; tuples count as arrays."""
    if expected is UNSET or expected == found:
        return
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in expected:
            yield from _entry(_differing, path, expected, found, name)
        for name in found.keys() - expected.keys():
            yield f"{path}[{name!r}]: not expected, found {shown(found[name])}"
    elif isinstance(expected, list | tuple) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differing(f"{path}[{index}]", one, other)
    else:
        yield f"{path}: expected {shown(expected)}, found {shown(found)}"


def _lacking(path: str, expected: Any, found: Any) -> Iterator[str]:
    """Yield the expected parts that a JSON value does not contain, as PostgreSQL's `@>` has it."""
    if expected is UNSET or expected == found:
        return
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in expected:
            yield from _entry(_lacking, path, expected, found, name)
    elif isinstance(expected, list | tuple) and isinstance(found, list):
        for one in expected:
            if all(any(_lacking(path, one, other)) for other in found):
                yield f"{path}: expected an item {shown(one)}, found {shown(found)}"
    else:
        yield f"{path}: expected {shown(expected)}, found {shown(found)}"


def _entry(compare: Any, path: str, expected: Mapping[str, Any], found: Any, name: str) -> Iterator[str]:
    where = f"{path}[{name!r}]"
    if name not in found:
        yield f"{where}: expected {shown(expected[name])}, not there"
    else:
        yield from compare(where, expected[name], found[name])


def shown(value: Any) -> str:
    """Return a value's repr, cut to `MAX_SHOWN_CHARS`."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"

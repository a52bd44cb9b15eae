"""Topics and the patterns that subscribe to them."""

from __future__ import annotations

import re

from .errors import InvalidTopic

MAX_TOPIC_LENGTH = 200

_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*)"
_TOPIC = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*")
_PATTERN = re.compile(rf"(?:{_SEGMENT}|\*)(?:\.(?:{_SEGMENT}|\*))*")


def check_topic(topic: object) -> None:
    """Refuse a topic that is not a dotted name of letters, digits, `_` and `-`.

    Raises:
        InvalidTopic: with the offending value.
    """
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise InvalidTopic(f"topic {topic!r} is not a dotted name such as 'shop.order_paid'")
    if len(topic) > MAX_TOPIC_LENGTH:
        raise InvalidTopic(f"topic {topic!r} is longer than {MAX_TOPIC_LENGTH} characters")


def topic_of(kind: str, name: str) -> str:
    """Return the topic of the calls of a function: its kind and its name, or the kind alone."""
    topic = f"{kind}.{name}"
    try:
        check_topic(topic)
    except InvalidTopic:
        return kind
    return topic


def check_pattern(pattern: object) -> None:
    """Refuse a pattern that is neither a topic nor a topic with `*` segments.

    Raises:
        InvalidTopic: with the offending value.
    """
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise InvalidTopic(
            f"topic pattern {pattern!r} is not a dotted name such as 'shop.order_paid' or 'shop.*'"
        )
    # No topic is that long, and PostgreSQL refuses regular expressions of many segments.
    if len(pattern) > MAX_TOPIC_LENGTH:
        raise InvalidTopic(f"topic pattern {pattern!r} is longer than {MAX_TOPIC_LENGTH} characters")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern: a final `*` matches one or more segments, any other `*` exactly one."""
    *leading, last = pattern.split(".")
    parts = [_SEGMENT if part == "*" else re.escape(part) for part in leading]
    parts.append(rf"{_SEGMENT}(?:\.{_SEGMENT})*" if last == "*" else re.escape(last))
    return re.compile(r"\.".join(parts))

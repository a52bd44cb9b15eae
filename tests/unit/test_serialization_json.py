"""Strict JSON: a value is stored without loss, or refused with its path."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import InvalidPayload
from outbox.serialization import MAX_DEPTH, dump_json

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@given(JSON)
def test_json_is_stored_without_loss(value: Any) -> None:
    assert json.loads(dump_json(value)) == value


def test_the_text_is_compact_and_not_escaped() -> None:
    assert dump_json({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert json.loads(dump_json({"a": "\\u0000"})) == {"a": "\\u0000"}


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = [CIRCULAR]


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (
            {"lines": [1, 2, 3, {"price": Decimal(1)}]},
            "payload['lines'][3]['price']",
            r"Decimal .* str\(value\)",
        ),
        ({"day": date(2026, 1, 1)}, "payload['day']", r"isoformat\(\)"),
        ({"id": UUID(int=1)}, "payload['id']", r"str\(value\)"),
        ({"tags": {1}}, "payload['tags']", r"sorted\(value\)"),
        ({"raw": b"x"}, "payload['raw']", "base64"),
        ({"x": float("nan")}, "payload['x']", "nan"),
        ([0, float("-inf")], "payload[1]", "-inf"),
        ({"a": ["x\0"]}, "payload['a'][0]", "NUL"),
        ({"a": {"k\0": 1}}, "payload['a']", "NUL"),
        ({"a": "\ud800"}, "payload['a']", "surrogate"),
        ({1: "a"}, "payload", r"key 1 .* str\(key\)"),
        ({"a": [{"b": {None: 1}}]}, "payload['a'][0]['b']", "key None"),
        (CIRCULAR, "payload['self'][0]", "contains itself"),
        pytest.param(10**5000, "payload", "JSON refuses it", id="huge"),
        (object(), "payload", "object is not JSON"),
    ],
)
def test_a_value_that_json_cannot_represent_is_refused_with_its_path(
    value: Any, path: str, reason: str
) -> None:
    with pytest.raises(InvalidPayload, match=reason) as caught:
        dump_json(value)
    assert caught.value.path == path


def test_the_path_of_a_header_begins_with_headers() -> None:
    with pytest.raises(InvalidPayload, match=r"^headers\['a'\]"):
        dump_json({"a": {1, 2}}, path="headers")


def test_the_limit_of_depth_does_not_depend_on_the_interpreter() -> None:
    assert dump_json(nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidPayload, match="levels deep"):
            dump_json(nested(levels))

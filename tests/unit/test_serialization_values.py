"""The round trip of typed values through JSON text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, auto
from typing import Any, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from django.core.files.base import ContentFile
from django.db.models import TextChoices
from django.http import HttpRequest, QueryDict
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import InvalidPayload, UnserializableArgument
from outbox.serialization import decode_arguments, decode_many, decode_value, dump_json, encode_arguments


class Colour(Enum):
    RED = 1
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Status(TextChoices):
    PAID = "paid"


class Access(Flag):
    READ = auto()
    WRITE = auto()


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    article: str
    price: Decimal
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass
class Basket:
    lines: list[Line]
    total: Decimal = dataclasses.field(init=False, default=Decimal(0))

    def __post_init__(self) -> None:
        self.total = sum((line.price for line in self.lines), Decimal(0))

    class Nested:
        pass


def round_trip(value: Any) -> Any:
    """Return the value that a worker gets."""
    encoded = encode_arguments({"value": value}, signal="test")
    return decode_arguments(json.loads(dump_json(encoded)))["value"]


def same(first: Any, second: Any) -> bool:
    """Compare with types, and NaN with itself."""
    return type(first) is type(second) and repr(first) == repr(second)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([*Colour, *Level, *Status, Access.READ | Access.WRITE, Access(0)])
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.times(timezones=st.none() | st.timezones()),
    lambda inner: (
        st.lists(inner).map(tuple)
        | st.frozensets(inner, max_size=1)
        | st.builds(Point, st.integers(), inner)
        | st.builds(Line, TEXT, st.decimals(allow_nan=False))
    ),
    max_leaves=8,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(TEXT | st.just("$"), inner)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.builds(Point, st.integers(), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_values_are_decoded_without_loss(value: Any) -> None:
    assert same(round_trip(value), value)


@given(st.sets(st.integers() | TEXT | st.uuids()))
def test_sets_are_decoded_without_loss(value: set[Any]) -> None:
    assert round_trip(value) == value
    assert round_trip(frozenset(value)) == frozenset(value)
    assert type(round_trip(value)) is set


@given(st.datetimes(timezones=st.timezones()))
def test_the_instant_and_the_zone_of_a_datetime_survive(value: datetime) -> None:
    found = round_trip(value)
    assert (found.utcoffset(), found.tzinfo.key, found.fold) == (
        value.utcoffset(),
        value.tzinfo.key,
        value.fold,
    )  # type: ignore[union-attr]


def test_a_zone_whose_rules_changed_keeps_the_instant() -> None:
    data = {"$": "datetime", "v": "2026-07-01T12:00:00+09:00", "zone": "Europe/Berlin"}
    assert decode_value(data) == datetime(2026, 7, 1, 3, tzinfo=UTC)
    assert str(decode_value(data).tzinfo) == "Europe/Berlin"


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        (gettext_lazy("Order"), "Order"),
        (mark_safe("<b>"), "<b>"),
        (SimpleLazyObject(lambda: (1, 2)), (1, 2)),
        (Decimal("sNaN123"), None),
        (Decimal("-NaN"), None),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2, minutes=30, seconds=5))), None),
        (Basket([Line("a", Decimal("1.5"), frozenset({"x"}))]), None),
        (Basket, None),
        (Basket.Nested, None),
        ({"$": "model", "model": "x"}, None),
        ({"$": {"$": 1}}, None),
        ({Status.PAID: 1, (1, 2): 2, None: 3, 4: 4}, None),
    ],
)
def test_special_values_are_decoded(value: Any, decoded: Any) -> None:
    assert same(round_trip(value), value if decoded is None else decoded)


def test_numbers_survive_a_database_that_stores_them_as_numeric() -> None:
    # jsonb stores 1e+16 as an integer and drops the sign of zero, so both are encoded as text.
    for number in (1e16, 1.5e300, -0.0, 5e-324):
        assert isinstance(encode_arguments({"n": number}, signal="test")["n"]["v"], str)
        assert math.copysign(1, round_trip(number)) == math.copysign(1, number)
    assert encode_arguments({"n": 1.5}, signal="test") == {"n": 1.5}


Local = namedtuple("Elsewhere", "a")


@dataclasses.dataclass
class Number(int):
    unit: str = ""


def local_enum() -> Any:
    class Hidden(Enum):
        A = 1

    return Hidden.A


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "object cannot be sent .* convert it"),
        (lambda: 1, "function cannot be sent"),
        ((each for each in ()), r"generator .* list\(value\)"),
        (range(3), r"range .* list\(value\)"),
        (bytearray(b"x"), r"bytes\(value\)"),
        (defaultdict(int), r"defaultdict .* dict\(value\)"),
        (QueryDict("a=1"), r"QueryDict .* dict\(value\)"),
        (HttpRequest(), "HttpRequest .* request.path"),
        (ContentFile(b"x"), "ContentFile .* name"),
        (local_enum(), "Hidden cannot be imported"),
        (Local(1), "Elsewhere cannot be imported"),
        (Number(1), "no built-in type"),
        ("a\0", "NUL"),
        ("\udc00", "surrogate"),
    ],
)
def test_any_other_value_is_refused_with_signal_argument_type_and_remedy(value: Any, reason: str) -> None:
    with pytest.raises(UnserializableArgument, match=reason) as caught:
        encode_arguments({"extra": {"list": [value]}}, signal="shop.order_paid")
    assert caught.value.path == "extra['list'][0]"
    assert caught.value.signal == "shop.order_paid"
    assert "shop.order_paid" in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    circular: list[Any] = []
    circular.append(circular)
    with pytest.raises(UnserializableArgument, match="contains itself"):
        encode_arguments({"loop": circular}, signal="test")


def test_the_deepest_value_that_is_encoded_is_also_dumped() -> None:
    value: Any = 1
    for _ in range(50):
        value = Point(1, {None: value}) if isinstance(value, tuple) else (value,)
    deepest: Any = 1
    for _ in range(50):
        deepest = {None: deepest}
    assert same(round_trip(deepest), deepest)


@pytest.mark.parametrize(
    "data",
    [
        {"$": "nothing", "v": 1},
        {"$": "enum", "v": "RED", "path": "os:system"},
        {"$": "enum", "v": "GREEN", "path": f"{__name__}:Colour"},
        {"$": "dataclass", "v": {}, "path": "subprocess:Popen"},
        {"$": "dataclass", "v": {}, "path": f"{__name__}:Line"},
        {"$": "namedtuple", "v": [1], "path": f"{__name__}:Point"},
        {"$": "namedtuple", "v": [1], "path": "builtins:tuple"},
        {"$": "type", "v": "os:path.join"},
        {"$": "type", "v": "antigravity:webbrowser"},
        {"$": "type", "v": f"{__name__}:Nowhere"},
        {"$": "class", "v": "nowhere.Model"},
        {"$": "model", "model": "nowhere.Model", "pk": 1, "database": "default"},
        {"$": "model", "model": "testapp.Order", "pk": 1, "database": "nowhere"},
        {"$": "set", "v": [[]]},
        {"$": "decimal", "v": "one"},
        {"$": "bytes", "v": "?"},
        {"$": "uuid"},
        {"$": []},
    ],
)
def test_undecodable_data_is_an_error_of_its_item_only(data: Any) -> None:
    good = {"value": 1}
    found = decode_many([good, {"value": data}, good])
    assert found[0] == found[2] == good
    assert isinstance(found[1], InvalidPayload)
    assert found[1].path == "value"


def test_a_dataclass_that_gained_a_default_and_lost_a_field_still_decodes() -> None:
    data = {"$": "dataclass", "v": {"article": "a", "price": 1, "gone": 2}, "path": f"{__name__}:Line"}
    assert decode_value(data) == Line("a", 1, frozenset())  # type: ignore[arg-type]


def test_uuid_and_time_keep_their_types() -> None:
    number = uuid4()
    assert round_trip(number) == number
    assert type(round_trip(UUID(int=1))) is UUID
    assert round_trip(time(1, 2, tzinfo=ZoneInfo("Europe/Berlin"))).tzinfo == ZoneInfo("Europe/Berlin")
    assert round_trip(date(2026, 1, 1)) == date(2026, 1, 1)

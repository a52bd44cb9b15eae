"""Topics, and the patterns that match them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import InvalidTopic
from outbox.topics import MAX_TOPIC_LENGTH, check_pattern, check_topic, compile_pattern

SEGMENTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,10}", fullmatch=True)
TOPICS = st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize("topic", ["a", "shop.order_paid", "shop.order-paid", "a.b.c.d", "1.2", "_"])
def test_dotted_names_are_topics(topic: str) -> None:
    check_topic(topic)


@pytest.mark.parametrize(
    "topic",
    ["", ".", "a.", ".a", "a..b", "a b", "a.*", "*", "-a", "a.-b", "é", "a\n", "a.b\0", 7, None, b"a"],
)
def test_any_other_topic_is_refused_with_its_value(topic: object) -> None:
    with pytest.raises(InvalidTopic) as refused:
        check_topic(topic)
    assert repr(topic) in str(refused.value)


def test_a_topic_fits_its_column() -> None:
    check_topic("a" * MAX_TOPIC_LENGTH)
    with pytest.raises(InvalidTopic, match="longer than 200"):
        check_topic("a" * (MAX_TOPIC_LENGTH + 1))


@pytest.mark.parametrize("pattern", ["", "a.", "a*", "a.*b", "**", "a.**", " *", "a.*.", 7])
def test_a_star_matches_whole_segments_only(pattern: object) -> None:
    with pytest.raises(InvalidTopic, match="pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("shop.paid", ["shop.paid"], ["shop.paid.twice", "shop", "xshop.paid", "shop.paidx", "shopxpaid"]),
        ("shop.*", ["shop.paid", "shop.order.paid"], ["shop", "shops.paid", "xshop.paid"]),
        ("*", ["shop", "shop.paid", "a.b.c"], []),
        ("*.paid", ["shop.paid"], ["paid", "a.shop.paid", "shop.order.paid"]),
        ("shop.*.paid", ["shop.order.paid"], ["shop.paid", "shop.a.b.paid"]),
        ("*.*", ["a.b", "a.b.c"], ["a"]),
    ],
)
def test_a_final_star_matches_one_or_more_segments_and_any_other_star_one(
    pattern: str, matching: list[str], other: list[str]
) -> None:
    check_pattern(pattern)
    compiled = compile_pattern(pattern)
    assert [topic for topic in [*matching, *other] if compiled.fullmatch(topic)] == matching


@given(TOPICS)
def test_every_topic_matches_itself_and_the_star(topic: str) -> None:
    check_topic(topic)
    assert compile_pattern(topic).fullmatch(topic)
    assert compile_pattern("*").fullmatch(topic)


@given(TOPICS, SEGMENTS)
def test_a_prefix_pattern_matches_only_topics_below_the_prefix(topic: str, below: str) -> None:
    pattern = compile_pattern(f"{topic}.*")
    assert pattern.fullmatch(f"{topic}.{below}")
    assert not pattern.fullmatch(topic)

"""The handlers of a project, by name and by topic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import dramatiq
import pytest

from outbox import ReceivedEvent, TransactionalActor, handler
from outbox.errors import DuplicateHandler, InvalidTopic, RegistrationError, UnknownHandler
from outbox.registry import BatchOptions, Registry, registry


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Remove the handlers and the duplicates that a test declares."""
    broker = dramatiq.get_broker()
    handlers, actors = set(registry.handlers), set(broker.actors)
    yield
    for name in set(registry.handlers) - handlers:
        registry.remove(name)
    for name in set(broker.actors) - actors:
        del broker.actors[name]
    registry.duplicates.clear()


def declare(*topics: str, name: str) -> None:
    """Declare a handler that does nothing."""

    @handler(*topics, name=name)
    def nothing(event: ReceivedEvent) -> None: ...


def subscribed_to(topic: str) -> list[str]:
    """Return the names of the test's handlers of a topic."""
    return [one.name for one in registry.subscribed_to(topic) if one.name.startswith("mine")]


def test_a_handler_is_named_by_its_dotted_path() -> None:
    @handler("mine.a")
    def named(event: ReceivedEvent) -> None: ...

    path = f"{__name__}.test_a_handler_is_named_by_its_dotted_path.<locals>.named"
    assert named.actor_name == path
    assert registry.get(path).function is named.fn


def test_the_handlers_of_a_topic_are_listed_once_in_the_order_of_declaration() -> None:
    declare("mine.*", "mine.a", name="mine-first")
    declare("mine.a", name="mine-second")
    assert subscribed_to("mine.a") == ["mine-first", "mine-second"]


def test_a_handler_declared_later_gets_a_topic_that_was_published_before() -> None:
    declare("mine.a", name="mine-first")
    assert subscribed_to("mine.a") == ["mine-first"]
    declare("mine.a", name="mine-second")
    assert subscribed_to("mine.a") == ["mine-first", "mine-second"]


def test_a_removed_handler_has_no_topic_and_no_actor() -> None:
    declare("mine.a", name="mine-first")
    registry.remove("mine-first")
    assert subscribed_to("mine.a") == []
    assert "mine-first" not in dramatiq.get_broker().actors


def test_the_cache_of_topics_is_bounded() -> None:
    declare("mine.*", name="mine-first")
    handler = registry.get("mine-first")
    small = Registry(max_topics=3)
    small.add(handler)
    for number in range(10):
        assert small.subscribed_to(f"mine.{number}") == (handler,)
    assert len(small._by_topic) <= 3


def test_a_second_function_under_one_name_is_refused_with_both_places() -> None:
    declare("mine.a", name="mine-first")
    with pytest.raises(DuplicateHandler, match=r"'mine-first' is declared twice: .*\.py:\d+\) and .*:\d+"):
        declare("mine.b", name="mine-first")


def test_publishing_is_refused_after_a_duplicate_name() -> None:
    declare("mine.a", name="mine-first")
    with suppress(DuplicateHandler):
        declare("mine.b", name="mine-first")
    with pytest.raises(DuplicateHandler, match="give one of them another name"):
        registry.subscribed_to("another.topic")


def test_a_transactional_actor_cannot_have_the_name_of_a_handler() -> None:
    declare("mine.a", name="mine-first")
    with pytest.raises(DuplicateHandler):
        dramatiq.actor(actor_class=TransactionalActor, actor_name="mine-first")(lambda: None)


def test_an_unknown_handler_is_refused_with_the_closest_name() -> None:
    declare("mine.a", name="mine-first")
    with pytest.raises(UnknownHandler, match=r"'mine-frist' is not registered; did you mean 'mine-first'\?"):
        registry.get("mine-frist")


@pytest.mark.parametrize("decorate", [lambda: handler(), lambda: handler(print)])  # type: ignore[arg-type]
def test_a_handler_without_a_topic_is_refused(decorate: object) -> None:
    with pytest.raises(RegistrationError, match="at least one topic"):
        decorate()  # type: ignore[operator]


def test_a_malformed_pattern_is_refused() -> None:
    with pytest.raises(InvalidTopic):
        declare("mine.**", name="mine-first")
    assert "mine-first" not in registry.handlers


@pytest.mark.parametrize("size", [0, -1, 10_001])
def test_an_invalid_batch_size_is_refused(size: int) -> None:
    with pytest.raises(RegistrationError, match="batch_size"):
        handler("mine.a", batch_size=size)


def test_a_negative_batch_wait_is_refused() -> None:
    with pytest.raises(RegistrationError, match="batch_wait"):
        handler("mine.a", batch_size=10, batch_wait=-1)


def test_an_ordered_batch_handler_is_refused() -> None:
    with pytest.raises(RegistrationError, match="both ordered and batched"):

        @handler("mine.a", name="mine-first", ordered=True, batch_size=10)
        def nothing(events: list[ReceivedEvent]) -> None: ...


def test_options_are_passed_to_the_actor() -> None:
    @handler("mine.a", name="mine-first", queue_name="mail", max_retries=8, priority=3)
    def nothing(event: ReceivedEvent) -> None: ...

    assert registry.get("mine-first").queue == "mail"
    assert nothing.options["max_retries"] == 8
    assert nothing.priority == 3


def test_seconds_and_a_timedelta_mean_the_same_wait() -> None:
    @handler("mine.a", name="mine-first", batch_size=10, batch_wait=2.5)
    def nothing(events: list[ReceivedEvent]) -> None: ...

    assert registry.get("mine-first").batch == BatchOptions(size=10, wait=timedelta(seconds=2.5))

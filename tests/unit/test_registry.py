"""The handlers of a project, found by name and by topic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import dramatiq
import pytest

from outbox import ReceivedEvent, TransactionalActor, handler
from outbox import registry as registry_module
from outbox.errors import DuplicateHandler, InvalidTopic, RegistrationError, UnknownHandler
from outbox.registry import Batching, registry


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Forget the handlers and the duplicates that a test declares."""
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
    """Return the names of the test's own handlers of a topic."""
    return [one.name for one in registry.subscribed_to(topic) if one.name.startswith("mine")]


def test_a_handler_is_named_by_its_dotted_path() -> None:
    @handler("mine.a")
    def named(event: ReceivedEvent) -> None: ...

    path = f"{__name__}.test_a_handler_is_named_by_its_dotted_path.<locals>.named"
    assert named.actor_name == path
    assert registry.get(path).function is named.fn


def test_handlers_come_in_the_order_of_their_declaration_and_each_once() -> None:
    declare("mine.*", "mine.a", name="mine-first")
    declare("mine.a", name="mine-second")
    assert subscribed_to("mine.a") == ["mine-first", "mine-second"]


def test_a_handler_declared_later_hears_a_topic_that_was_published_before() -> None:
    declare("mine.a", name="mine-first")
    assert subscribed_to("mine.a") == ["mine-first"]
    declare("mine.a", name="mine-second")
    assert subscribed_to("mine.a") == ["mine-first", "mine-second"]


def test_a_removed_handler_hears_nothing_and_leaves_its_broker() -> None:
    declare("mine.a", name="mine-first")
    registry.remove("mine-first")
    assert subscribed_to("mine.a") == []
    assert "mine-first" not in dramatiq.get_broker().actors


def test_topics_made_up_as_a_project_goes_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MAX_TOPICS", 3)
    declare("mine.*", name="mine-first")
    for number in range(10):
        assert subscribed_to(f"mine.{number}") == ["mine-first"]
    assert len(registry._by_topic) <= 3


def test_two_functions_under_one_name_are_refused_naming_both_places() -> None:
    declare("mine.a", name="mine-first")
    with pytest.raises(DuplicateHandler, match=r"'mine-first' is declared twice: .*\.py:\d+\) and .*:\d+"):
        declare("mine.b", name="mine-first")


def test_after_a_duplicate_publishing_is_refused_since_one_of_the_two_would_get_nothing() -> None:
    declare("mine.a", name="mine-first")
    with suppress(DuplicateHandler):
        declare("mine.b", name="mine-first")
    with pytest.raises(DuplicateHandler, match="give one of them another name"):
        registry.subscribed_to("another.topic")


def test_a_transactional_actor_takes_a_name_like_any_handler() -> None:
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
def test_a_batch_that_could_never_run_is_refused(size: int) -> None:
    with pytest.raises(RegistrationError, match="batch_size"):
        handler("mine.a", batch_size=size)


def test_a_negative_wait_for_a_batch_is_refused() -> None:
    with pytest.raises(RegistrationError, match="batch_wait"):
        handler("mine.a", batch_size=10, batch_wait=-1)


def test_a_batch_has_no_order() -> None:
    with pytest.raises(RegistrationError, match="both ordered and batched"):

        @handler("mine.a", name="mine-first", ordered=True, batch_size=10)
        def nothing(events: list[ReceivedEvent]) -> None: ...


def test_options_of_the_actor_are_passed_on() -> None:
    @handler("mine.a", name="mine-first", queue_name="mail", max_retries=8, priority=3)
    def nothing(event: ReceivedEvent) -> None: ...

    assert registry.get("mine-first").queue == "mail"
    assert nothing.options["max_retries"] == 8
    assert nothing.priority == 3


def test_seconds_and_a_timedelta_mean_the_same_wait() -> None:
    @handler("mine.a", name="mine-first", batch_size=10, batch_wait=2.5)
    def nothing(events: list[ReceivedEvent]) -> None: ...

    assert registry.get("mine-first").batch == Batching(size=10, wait=timedelta(seconds=2.5))


@pytest.mark.parametrize("pack", [0, -1, 1001])
def test_a_pack_that_could_never_travel_is_refused(pack: int) -> None:
    with pytest.raises(RegistrationError, match=rf"pack {pack} must be between 1 and 1000"):
        handler("mine.a", pack=pack)


def test_a_handler_takes_one_event_or_a_list() -> None:
    with pytest.raises(RegistrationError, match="both pack and batch_size; choose pack for"):
        handler("mine.a", pack=10, batch_size=10)


@pytest.mark.parametrize("option", ["on_success", "on_retry_exhausted", "store_results"])
def test_what_dramatiq_does_once_a_message_is_refused_for_a_pack(option: str) -> None:
    with pytest.raises(RegistrationError, match=f"'mine-first' has both pack and {option}"):

        @handler("mine.a", name="mine-first", pack=10, **{option: "other"})
        def nothing(event: ReceivedEvent) -> None: ...

    assert "mine-first" not in registry.handlers

"""The context of requests: events carry it to the worker, and it never leaks."""

import asyncio
import threading
import uuid

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import connection, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path
from hypothesis import given
from hypothesis import strategies as st

import outbox
from outbox import current_event, publish
from outbox.contexts import Handling, current_context
from outbox.events import ReceivedEvent
from outbox.http import OutboxContextMiddleware, fields_of
from outbox.models import Event
from tests.support.data_flow import clear_broker, finish, flush, relay_all, worker
from tests.support.receivers import background

pytestmark = pytest.mark.django_db(transaction=True)

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "outbox.http.OutboxContextMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


class Broken(Exception):
    """The error of a view."""


def record(topic: str = "context.seen", payload=None) -> None:
    with transaction.atomic():
        publish(topic, payload)


def publishing_view(request):
    record(payload=request.GET.get("n"))
    return HttpResponse("ok")


def quiet_view(request):
    return HttpResponse("ok")


def broken_view(request):
    raise Broken


async def async_view(request):
    # Gives the concurrent requests time to set their contexts.
    for _ in range(3):
        await asyncio.sleep(0)
    await sync_to_async(record)(payload=request.GET.get("n"))
    return HttpResponse("ok")


def streaming_view(request):
    def body():
        record(payload="first")
        with outbox.context(tenant="acme"):
            yield b"1"
            record(payload="second")
            yield b"2"
        record(payload="third")

    return StreamingHttpResponse(body())


async def async_streaming_view(request):
    async def body():
        await sync_to_async(record)(payload="first")
        with outbox.context(tenant="acme"):
            yield b"1"
            await sync_to_async(record)(payload="second")
            yield b"2"

    return StreamingHttpResponse(body())


urlpatterns = [
    path("publish/", publishing_view),
    path("quiet/", quiet_view),
    path("broken/", broken_view),
    path("async/", async_view),
    path("stream/", streaming_view),
    path("astream/", async_streaming_view),
]


@pytest.fixture(autouse=True)
def site(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = MIDDLEWARE
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture
def user():
    return get_user_model().objects.create_user("ada", password="x")


def contexts() -> list[dict]:
    return [event.headers.get("context", {}) for event in Event.objects.order_by("pk")]


# ---------------------------------------------------------------- the fields of a request


def test_an_event_carries_the_fields_of_the_request(client, user):
    client.force_login(user)
    client.get("/publish/", {"secret": "1"}, headers={"x-request-id": "abc-1", "user-agent": "Netscape 4"})
    assert contexts() == [
        {
            "request_id": "abc-1",
            "user_id": user.pk,
            "client_address": "127.0.0.1",
            "user_agent": "Netscape 4",
            "method": "GET",
            "path": "/publish/",
        }
    ]


def test_an_anonymous_request_has_no_user(client):
    client.get("/publish/")
    assert contexts()[0]["user_id"] is None


def test_a_request_without_the_authentication_middleware_has_no_user(client, settings):
    settings.MIDDLEWARE = ["outbox.http.OutboxContextMiddleware"]
    client.get("/publish/")
    assert contexts()[0]["user_id"] is None


def test_the_response_has_the_request_id(client):
    assert client.get("/quiet/", headers={"x-request-id": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    assert uuid.UUID(client.get("/quiet/").headers["X-Request-ID"])


def test_a_request_that_publishes_nothing_does_not_look_up_its_user(client, user):
    client.force_login(user)
    with CaptureQueriesContext(connection) as queries:
        client.get("/quiet/")
    assert len(queries) == 0


def test_text_from_a_client_cannot_make_a_publish_fail(client, settings):
    settings.OUTBOX = {"MAX_PAYLOAD_BYTES": 8000}
    client.get("/publish/%00\x00/../" + "p" * 3000, headers={"user-agent": "a\0b" + "u" * 20_000})
    request = RequestFactory().get("/" + "p" * 3000, headers={"user-agent": "a\0\x1bb" + "u" * 20_000})
    request.path = "/\0\ud800" + "p" * 3000
    with outbox.context(**fields_of(request)):
        record()
    (found,) = contexts()
    assert (len(found["path"]), len(found["user_agent"])) == (1024, 256)
    assert found["path"].startswith("/��p")
    assert found["user_agent"].startswith("a��bu")


def test_a_user_key_that_is_no_number_is_stored_as_text():
    request = RequestFactory().get("/")
    request.user = AnonymousUser()
    request.user.pk = uuid.UUID(int=7)
    assert fields_of(request)["user_id"]() == "00000000-0000-0000-0000-000000000007"


def test_trusted_proxies_is_read_from_the_settings(client, settings):
    settings.OUTBOX = {"TRUSTED_PROXIES": 1}
    client.get("/publish/", headers={"x-forwarded-for": "6.6.6.6, 198.51.100.1"})
    assert contexts()[0]["client_address"] == "198.51.100.1"


# ---------------------------------------------------------------- no leak


def test_no_context_is_left_after_a_request(client):
    client.get("/publish/")
    assert current_context() == {}
    record(payload="after")
    assert contexts()[1] == {}


def test_no_context_is_left_after_a_failed_request(client):
    with pytest.raises(Broken):
        client.get("/broken/")
    assert current_context() == {}


def test_requests_in_threads_do_not_see_each_other():
    started = threading.Barrier(4, timeout=10)

    def view(request):
        started.wait()
        record(payload=request.GET["n"])
        return HttpResponse("ok")

    middleware = OutboxContextMiddleware(view)

    def answer(n: int) -> None:
        middleware(RequestFactory().get("/", {"n": n}, headers={"x-request-id": f"r-{n}"}))
        connection.close()

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {event.payload: event.headers["context"]["request_id"] for event in Event.objects.all()}
    assert found == {str(n): f"r-{n}" for n in range(4)}


def test_concurrent_async_requests_do_not_see_each_other():
    async def main():
        client = AsyncClient()
        requests = (client.get("/async/", {"n": n}, headers={"x-request-id": f"r-{n}"}) for n in range(10))
        responses = await asyncio.gather(*requests)
        return [response.headers["X-Request-ID"] for response in responses], current_context()

    ids, left = async_to_sync(main)()
    assert (ids, left) == ([f"r-{n}" for n in range(10)], {})
    found = {event.payload: event.headers["context"]["request_id"] for event in Event.objects.all()}
    assert found == {str(n): f"r-{n}" for n in range(10)}


def test_an_async_request_carries_its_user(user):
    async def main():
        client = AsyncClient()
        await sync_to_async(client.force_login)(user)
        await client.get("/async/")

    async_to_sync(main)()
    assert contexts()[0]["user_id"] == user.pk


def test_a_sync_view_under_an_async_server_has_the_context():
    async_to_sync(AsyncClient().get)("/publish/", headers={"x-request-id": "abc-1"})
    assert contexts()[0]["request_id"] == "abc-1"


def test_tasks_of_one_loop_do_not_see_each_other():
    async def task(n: int) -> None:
        with outbox.context(n=n):
            await asyncio.sleep(0)
            await sync_to_async(record)(payload=n)

    async def main():
        await asyncio.gather(*(task(n) for n in range(5)))
        return current_context()

    assert async_to_sync(main)() == {}
    assert {event.payload: event.headers["context"] for event in Event.objects.all()} == {
        n: {"n": n} for n in range(5)
    }


# ---------------------------------------------------------------- streams


def test_a_streamed_body_has_the_context_of_its_request_and_leaks_nothing(client):
    response = client.get("/stream/", headers={"x-request-id": "abc-1"})
    parts = []
    for part in response.streaming_content:
        parts.append(part)
        assert current_context() == {}
    assert parts == [b"1", b"2"]
    found = {event.payload: event.headers["context"] for event in Event.objects.all()}
    assert {found[n]["request_id"] for n in ("first", "second", "third")} == {"abc-1"}
    assert [found[n].get("tenant") for n in ("first", "second", "third")] == [None, "acme", None]


def test_an_async_streamed_body_has_the_context_of_its_request():
    async def main():
        response = await AsyncClient().get("/astream/", headers={"x-request-id": "abc-1"})
        parts = [(part, current_context()) async for part in response.streaming_content]
        return parts

    assert async_to_sync(main)() == [(b"1", {}), (b"2", {})]
    found = {event.payload: event.headers["context"] for event in Event.objects.all()}
    assert (found["second"]["request_id"], found["second"]["tenant"]) == ("abc-1", "acme")
    assert "tenant" not in found["first"]


def test_a_file_response_is_not_wrapped():
    def view(request):
        return FileResponse(open(__file__, "rb"))

    response = OutboxContextMiddleware(view)(RequestFactory().get("/"))
    with response.file_to_stream as file:
        assert file.name == __file__


# ---------------------------------------------------------------- nesting, workers and causes


def test_contexts_nest():
    with outbox.context(tenant="acme", step=1):
        with outbox.context(step=2):
            record()
        record()
    assert contexts() == [{"tenant": "acme", "step": 2}, {"tenant": "acme", "step": 1}]


def test_a_block_that_fails_leaves_no_context():
    with pytest.raises(Broken), outbox.context(tenant="acme"):
        raise Broken
    assert current_context() == {}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers()), max_size=5))
def test_inner_fields_replace_outer_fields_until_the_inner_block_ends(layers):
    def enter(rest, expected):
        assert current_context() == expected
        if rest:
            with outbox.context(**rest[0]):
                enter(rest[1:], {**expected, **rest[0]})
            assert current_context() == expected

    enter(layers, {})


def test_each_message_runs_in_the_context_of_its_own_event():
    seen = {}

    def subscribe(**options):
        def note(event):
            seen[event.payload] = (current_context(), current_event().payload)

        return lambda _: outbox.handler("leak.test", **options)(note)

    with background(subscribe):
        with outbox.context(tenant="acme"):
            record("leak.test", 1)
        record("leak.test", 2)
        with outbox.context(tenant="other"):
            record("leak.test", 3)
        relay_all()
        with worker():
            for event in Event.objects.all():
                finish(event)
    assert seen == {1: ({"tenant": "acme"}, 1), 2: ({}, 2), 3: ({"tenant": "other"}, 3)}
    assert (current_context(), current_event()) == ({}, None)


def test_an_event_published_by_a_handler_has_the_ids_of_its_cause_and_root():
    def chain(*topics):
        return lambda **options: (
            lambda _: outbox.handler(topics[0], **options)(lambda event: record(topics[1]))
        )

    with (
        background(chain("cause.root", "cause.child"), name="child"),
        background(chain("cause.child", "cause.grandchild"), name="grandchild"),
    ):
        with outbox.context(tenant="acme"):
            record("cause.root")
        root = Event.objects.get()
        for topic in ("cause.root", "cause.child"):
            relay_all()
            with worker():
                finish(Event.objects.get(topic=topic))
    child, grandchild = (Event.objects.get(topic=f"cause.{name}") for name in ("child", "grandchild"))
    assert child.headers == {
        "context": {"tenant": "acme"},
        "correlation_id": str(root.pk),
        "causation_id": str(root.pk),
    }
    assert grandchild.headers["correlation_id"] == str(root.pk)
    assert grandchild.headers["causation_id"] == str(child.pk)


def test_the_context_of_a_handler_replaces_the_context_of_the_process():
    with outbox.context(tenant="process"), Handling(ReceivedEvent(uuid.uuid4(), "a", headers={})):
        assert current_context() == {}

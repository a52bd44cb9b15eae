"""The Django middleware that adds fields of the request to the context of events."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import FileResponse, HttpRequest, HttpResponseBase, StreamingHttpResponse

from .conf import get_settings
from .contexts import SavedContext, context

REQUEST_ID_HEADER = "X-Request-ID"

# Text from a client must not make a publish fail: it is cut, and characters that the database refuses are
# replaced.
MAX_METHOD_CHARS = 32
MAX_PATH_CHARS = 1024
MAX_USER_AGENT_CHARS = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::\d+)?|(?P<v4>[\d.]+):\d+")


class OutboxContextMiddleware:
    """Adds a request's id, user, client and path to the context of the events published in the request."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer the request in its context."""
        if self._is_async:
            return self._answer_async(request)
        fields = fields_of(request)
        with context(**fields):
            return _finished(self.get_response(request), fields["request_id"])

    async def _answer_async(self, request: HttpRequest) -> HttpResponseBase:
        fields = fields_of(request)
        with context(**fields):
            return _finished(await self.get_response(request), fields["request_id"])


def fields_of(request: HttpRequest) -> dict[str, Any]:
    """Return the fields of a request; the user is only looked up when an event is published."""
    return {
        "request_id": request_id(request.headers.get(REQUEST_ID_HEADER, "")),
        "user_id": partial(_user_id, request),
        "client_address": client_address(
            request.META.get("REMOTE_ADDR", ""),
            request.headers.get("X-Forwarded-For", ""),
            get_settings().trusted_proxies,
        ),
        "user_agent": _clean(request.headers.get("User-Agent", ""), MAX_USER_AGENT_CHARS),
        "method": _clean(request.method or "", MAX_METHOD_CHARS),
        # Without the query string, which may contain secrets.
        "path": _clean(request.path, MAX_PATH_CHARS),
    }


def request_id(given: str) -> str:
    """Return the given id, or a new one if the given one is not safe to log and send back."""
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def client_address(peer: str, forwarded_for: str, trusted_proxies: int) -> str | None:
    """Return the address of a client, as reported by trusted proxies.

    Each proxy appends the address of its own client, so trusted proxies have written the last entries. The
    client can forge all entries before the trusted ones.

    Args:
        peer: the address of this connection: the client's, or the last proxy's.
        forwarded_for: the `X-Forwarded-For` header.
        trusted_proxies: the number of trusted proxies in front of this server.
    """
    entries = [entry for part in forwarded_for.split(",") if (entry := part.strip())]
    if not trusted_proxies or not entries:
        return _address(peer)
    return _address(entries[-min(trusted_proxies, len(entries))]) or _address(peer)


def _address(text: str) -> str | None:
    match = _PORT.fullmatch(text)
    if match is not None:
        text = match["v6"] or match["v4"] or ""
    try:
        # The zone of an IPv6 address has a meaning only on its own machine, and may be any text.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _user_id(request: HttpRequest) -> int | str | None:
    # Without the authentication middleware there is no `request.user`; an anonymous user's key is None.
    pk = getattr(getattr(request, "user", None), "pk", None)
    return pk if pk is None or isinstance(pk, int) else str(pk)


def _clean(text: str, limit: int) -> str:
    return _UNPRINTABLE.sub("�", text[:limit])


def _finished(response: HttpResponseBase, request_id: str) -> HttpResponseBase:
    response.headers[REQUEST_ID_HEADER] = request_id
    # A streamed body is produced after this middleware has returned. A file publishes no events, and the
    # server may send it without Python.
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        body: Any = response.streaming_content
        saved = SavedContext()
        response.streaming_content = _stream_async(body, saved) if response.is_async else _stream(body, saved)
    return response


def _stream(body: Iterator[bytes], saved: SavedContext) -> Iterator[bytes]:
    while True:
        with saved.active():
            try:
                part = next(body)
            except StopIteration:
                return
        yield part


async def _stream_async(body: AsyncIterator[bytes], saved: SavedContext) -> AsyncIterator[bytes]:
    while True:
        with saved.active():
            try:
                part = await anext(body)
            except StopAsyncIteration:
                return
        yield part

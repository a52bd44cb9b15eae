"""The Django middleware: what a request tells about itself travels with the events that it publishes."""

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
from .contexts import Suspended, context

REQUEST_ID_HEADER = "X-Request-ID"

# What a client says must not make a publish fail: it is cut, and freed of what the database refuses.
MAX_METHOD_CHARS = 32
MAX_PATH_CHARS = 1024
MAX_USER_AGENT_CHARS = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::\d+)?|(?P<v4>[\d.]+):\d+")


class OutboxContextMiddleware:
    """Adds a request's id, user, client and path to the context of the events that it publishes."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer the request within its context."""
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
    """Return the fields of a request; the user is looked up when an event is published, and only then."""
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
        # Without the query, which may hold what is nobody's business.
        "path": _clean(request.path, MAX_PATH_CHARS),
    }


def request_id(given: str) -> str:
    """Return the id that came with a request, or a new one if that is not safe to log and send back."""
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def client_address(peer: str, forwarded_for: str, trusted_proxies: int) -> str | None:
    """Return the address of a client, as far as it can be trusted.

    Each proxy appends the address that it was called from, so the entries of our own proxies are the last
    ones; all before them is whatever the client likes to claim.

    Args:
        peer: the address of this connection: the client's, or the last proxy's.
        trusted_proxies: how many of our own proxies stand before this server.
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
        # A zone is meaningful only on the machine that names it, and may be any text.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _user_id(request: HttpRequest) -> int | str | None:
    # `request.user` is missing without the authentication middleware, and None for an anonymous user's key.
    pk = getattr(getattr(request, "user", None), "pk", None)
    return pk if pk is None or isinstance(pk, int) else str(pk)


def _clean(text: str, limit: int) -> str:
    return _UNPRINTABLE.sub("�", text[:limit])


def _finished(response: HttpResponseBase, request_id: str) -> HttpResponseBase:
    response.headers[REQUEST_ID_HEADER] = request_id
    # A streamed body is produced after this middleware has returned. A file publishes nothing, and a server
    # may send it by itself.
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        body: Any = response.streaming_content
        suspended = Suspended()
        response.streaming_content = (
            _stream_async(body, suspended) if response.is_async else _stream(body, suspended)
        )
    return response


def _stream(body: Iterator[bytes], suspended: Suspended) -> Iterator[bytes]:
    while True:
        with suspended.resumed():
            try:
                part = next(body)
            except StopIteration:
                return
        yield part


async def _stream_async(body: AsyncIterator[bytes], suspended: Suspended) -> AsyncIterator[bytes]:
    while True:
        with suspended.resumed():
            try:
                part = await anext(body)
            except StopAsyncIteration:
                return
        yield part

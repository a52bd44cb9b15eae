"""Refuse requests whose parameters no column can hold, before a view reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import BadRequest, ValidationError
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

if TYPE_CHECKING:
    from .base import OutboxAdmin

View = Callable[..., HttpResponse]


def guard(model_admin: OutboxAdmin, patterns: list[Any]) -> list[Any]:
    """Guard the views of an admin; a hostile request is then answered with 400 instead of 500."""
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            pattern.callback = _guarded(model_admin, pattern.callback)
    return patterns


def _guarded(model_admin: OutboxAdmin, view: View) -> View:
    # Django reads attributes of the view, such as `csrf_exempt`; `wraps` copies them.
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        for name, value in _texts(request, kwargs):
            if not _is_storable(value):
                raise BadRequest(f"{name[:100]!r} holds a NUL or a lone surrogate")
        _check_selection(model_admin, request)
        return view(request, *args, **kwargs)

    return guarded


def _texts(request: HttpRequest, address: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each part of the address, and of each parameter and its name."""
    yield from ((name, str(value)) for name, value in address.items())
    for parameters in (request.GET, request.POST):
        for name, values in parameters.lists():
            yield from ((name, text) for text in (name, *map(str, values)))


def _is_storable(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_selection(model_admin: OutboxAdmin, request: HttpRequest) -> None:
    """Refuse selected rows whose primary key has another type; Django would pass the key to the database."""
    for pk in request.POST.getlist(ACTION_CHECKBOX_NAME):
        try:
            model_admin.opts.pk.to_python(pk)
        except ValidationError as error:
            raise BadRequest(f"{pk[:100]!r} is not a primary key of {model_admin.opts.label}") from error

"""What all pages share: read-only, and lists that walk along an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.text import capfirst

from .paging import WINDOW, Order, Page, Walk
from .searching import Search

AFTER = "after"
BEFORE = "before"

CHANGE_PAUSED = "change_pausedhandler"

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


class WalkingChangeList(ChangeList):
    """A list of one page at a time, that knows neither how many pages nor how many rows there are."""

    model_admin: OutboxAdmin
    window = WINDOW

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Apply search and filters; where the page starts is neither."""
        for name in (AFTER, BEFORE):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        return super().get_queryset(request, *args, **kwargs)

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """Order by the primary key, for actions; the page brings its own order."""
        return ["pk"]

    def get_results(self, request: HttpRequest) -> None:
        """Load one page."""
        walk = self._walk()
        self.page = self._load(walk, request)
        self.model_admin.after_load(self.page.rows)
        self.result_list = self.page.rows
        self.result_count = self.full_result_count = len(self.page.rows)
        self.show_full_result_count = False
        self.show_admin_actions = bool(self.page.rows)
        self.can_show_all = self.multi_page = False
        self.before_url = self._url(BEFORE, walk.order, self.page.before)
        self.after_url = self._url(AFTER, walk.order, self.page.after)
        self.first_url = self.get_query_string() if request.GET.get(AFTER) else ""

    def _walk(self) -> Walk:
        rows, conditions = self.root_queryset, []
        term = self.query.strip() if self.search_fields else ""
        self.search = self.model_admin.search(term, rows) if term else None
        specs: Any = self.filter_specs
        chosen = {spec.parameter_name: spec.value() for spec in specs if spec.value()}
        if self.search and self.search.is_lookup:
            # It finds so few rows that what else is wanted of them needs no index.
            rows, chosen = rows.filter(self.search.condition), {}
        elif self.search:
            conditions.append(self.search.condition)
        for spec in specs:
            if spec.value() and spec.is_indexed(chosen) and spec.parameter_name in chosen:
                rows = rows.filter(spec.condition())
            elif spec.value():
                conditions.append(spec.condition())
            if spec.value() and (rest := spec.rest()) is not None:
                conditions.append(rest)
        return Walk(
            rows=self.model_admin.for_list(rows),
            order=self.model_admin.get_order(chosen),
            conditions=conditions,
            size=self.list_per_page,
        )

    def _load(self, walk: Walk, request: HttpRequest) -> Page:
        text = request.GET.get(BEFORE) or request.GET.get(AFTER)
        try:
            start = walk.order.decode(self.model, text) if text else None
        except ValueError as error:
            raise IncorrectLookupParameters from error
        return walk.page(start, backward=BEFORE in request.GET)

    def _url(self, name: str, order: Order, position: Any) -> str:
        return "" if position is None else self.get_query_string({name: order.encode(position)})


class OutboxAdmin(_ModelAdmin):
    """A table that can be looked at."""

    list_per_page = 100
    sortable_by = ()
    actions_selection_counter = True
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    class Media:
        """The style sheet of all pages."""

        css = {"all": ("outbox/admin.css",)}

    def get_order(self, chosen: dict[str, str]) -> Order:
        """Return the order of the list under the filters that an index serves."""
        return Order(("pk",), descending=True)

    def for_list(self, rows: Any) -> Any:
        """Leave out what the list does not show."""
        return rows

    def after_load(self, rows: list[Any]) -> None:
        """Fetch, for all rows of a page at once, what the list shows beside them."""

    def search(self, term: str, rows: Any) -> Search:
        """Understand the search box."""
        raise NotImplementedError

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Leave the search to the walk."""
        return queryset, False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list under the name of what it holds."""
        title = {"title": capfirst(self.opts.verbose_name_plural)}
        return super().changelist_view(request, {**title, **(extra_context or {})})

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that walks."""
        return WalkingChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Allow the filters only: any other lookup might read the whole table."""
        return lookup in {getattr(each, "parameter_name", None) for each in self.list_filter}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: only publishing writes these tables."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: events are immutable, and a state changes by its verbs alone."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: pruning deletes."""
        return False

    def may(self, request: HttpRequest, permission: str) -> bool:
        """Return whether the user has a permission of this app, such as `change_delivery`."""
        return bool(request.user.has_perm(f"{self.opts.app_label}.{permission}"))

    def pause_buttons(self, request: HttpRequest) -> dict[str, Any]:
        """Return what pages need that offer to pause and resume."""
        return {
            "may_pause": self.may(request, CHANGE_PAUSED),
            "pause_url": self.url("pausedhandler_pause"),
            "resume_url": self.url("pausedhandler_resume"),
        }

    def page_context(self, request: HttpRequest, **context: Any) -> dict[str, Any]:
        """Return what the pages need that are not Django's own."""
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "trail_is_list": django.VERSION >= (6, 1),
            **context,
        }

    def url(self, name: str, *args: Any) -> str:
        """Return the address of one of the outbox's pages on this admin site."""
        return reverse(f"admin:outbox_{name}", args=args, current_app=self.admin_site.name)

"""The base of all pages: read-only, with lists that use keyset pagination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.text import capfirst

from .pagination import AFTER, BEFORE, SCAN_LIMIT, IndexScan, Ordering, Page
from .request_guard import guard
from .search import Search

CHANGE_PAUSED = "change_pausedhandler"

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


class KeysetChangeList(ChangeList):
    """A list that loads one page and counts neither pages nor rows."""

    model_admin: OutboxAdmin
    scan_limit = SCAN_LIMIT

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Apply search and filters; the parameters of the page position are not filters."""
        for name in (AFTER, BEFORE):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        return super().get_queryset(request, *args, **kwargs)

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """Order by the primary key, for actions; pages have an ordering of their own."""
        return ["pk"]

    def get_results(self, request: HttpRequest) -> None:
        """Load one page."""
        scan = self._scan()
        self.page = self._load(scan, request)
        self.model_admin.load_related(self.page.rows)
        self.result_list = self.page.rows
        self.result_count = self.full_result_count = len(self.page.rows)
        self.show_full_result_count = False
        self.show_admin_actions = bool(self.page.rows)
        self.can_show_all = self.multi_page = False
        self.before_url = self._url(BEFORE, scan.ordering, self.page.before)
        self.after_url = self._url(AFTER, scan.ordering, self.page.after)
        self.first_url = self.get_query_string() if request.GET.get(AFTER) else ""

    def _scan(self) -> IndexScan:
        rows, conditions = self.root_queryset, []
        term = self.query.strip() if self.search_fields else ""
        self.search = self.model_admin.search(term, rows) if term else None
        specs: Any = self.filter_specs
        chosen = {spec.parameter_name: spec.value() for spec in specs if spec.value()}
        if self.search and self.search.is_lookup:
            # A lookup finds so few rows that the filters need no index.
            rows, chosen = rows.filter(self.search.condition), {}
        elif self.search:
            conditions.append(self.search.condition)
        for spec in specs:
            if spec.value() and spec.is_indexed(chosen) and spec.parameter_name in chosen:
                rows = rows.filter(spec.condition())
            elif spec.value():
                conditions.append(spec.condition())
            if spec.value() and (further := spec.unindexed_condition()) is not None:
                conditions.append(further)
        return IndexScan(
            rows=self.model_admin.list_columns(rows),
            ordering=self.model_admin.list_order(chosen),
            conditions=conditions,
            size=self.list_per_page,
        )

    def _load(self, scan: IndexScan, request: HttpRequest) -> Page:
        text = request.GET.get(BEFORE) or request.GET.get(AFTER)
        try:
            start = scan.ordering.decode(self.model, text) if text else None
        except ValueError as error:
            raise IncorrectLookupParameters from error
        return scan.page(start, backward=BEFORE in request.GET)

    def _url(self, name: str, ordering: Ordering, position: Any) -> str:
        return "" if position is None else self.get_query_string({name: ordering.encode(position)})


class OutboxAdmin(_ModelAdmin):
    """A read-only admin of one table."""

    list_per_page = 100
    sortable_by = ()
    actions_selection_counter = True
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    class Media:
        """The style sheet of all pages, and the script of lists on phones."""

        css = {"all": ("outbox/admin.css",)}
        js = ("outbox/cards.js",)

    @property
    def urls(self) -> list[Any]:
        """Return the addresses of all pages, guarded against hostile requests."""
        return guard(self, self.get_urls())

    def list_order(self, chosen: dict[str, str]) -> Ordering:
        """Return the ordering of the list for the chosen filters that an index serves."""
        return Ordering(("pk",), descending=True)

    def list_columns(self, rows: Any) -> Any:
        """Read only the columns that the list shows."""
        return rows

    def load_related(self, rows: list[Any]) -> None:
        """Load related data for all rows of a page at once."""

    def search(self, term: str, rows: Any) -> Search:
        """Parse the search box."""
        raise NotImplementedError

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Leave the search to the index scan."""
        return queryset, False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list with the plural name of the table as its title."""
        title = {"title": capfirst(self.opts.verbose_name_plural)}
        return super().changelist_view(request, {**title, **(extra_context or {})})

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the object of a page; Django takes an empty `_to_field` for the name of a field."""
        return super().get_object(request, object_id, from_field or None)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the class of the list."""
        return KeysetChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Allow the filters only: any other lookup might read the whole table."""
        return lookup in {getattr(each, "parameter_name", None) for each in self.list_filter}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: only publishing writes these tables."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: events are immutable, and only the verbs on deliveries change a state."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: pruning deletes."""
        return False

    def has_app_permission(self, request: HttpRequest, codename: str) -> bool:
        """Return whether the user has a permission of this app, such as `change_delivery`."""
        return bool(request.user.has_perm(f"{self.opts.app_label}.{codename}"))

    def pause_context(self, request: HttpRequest) -> dict[str, Any]:
        """Return the template context of the buttons that pause and resume."""
        return {
            "may_pause": self.has_app_permission(request, CHANGE_PAUSED),
            "pause_url": self.url("pausedhandler_pause"),
            "resume_url": self.url("pausedhandler_resume"),
        }

    def page_context(self, request: HttpRequest, **context: Any) -> dict[str, Any]:
        """Return the template context of a page that is not a page of Django."""
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "breadcrumbs_are_list": django.VERSION >= (6, 1),
            **context,
        }

    def back(self, request: HttpRequest, otherwise: str) -> str:
        """Return the overview's address if its button sent the request, or else another address."""
        came_from_overview = "overview" in request.GET or "overview" in request.POST
        return self.url("overview") if came_from_overview else otherwise

    def url(self, name: str, *args: Any) -> str:
        """Return the address of an outbox page on this admin site."""
        return reverse(f"admin:outbox_{name}", args=args, current_app=self.admin_site.name)

"""The paused handlers, and the pages that pause and resume."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from outbox.models import PausedHandler
from outbox.registry import registry

from . import actions, formatting
from .base import CHANGE_PAUSED, OutboxAdmin

# The count of waiting deliveries of one handler stops here.
_WAITING_LIMIT = 10_000


class PauseForm(forms.Form):
    """The handler to pause, and the reason."""

    handler = forms.ChoiceField(label=_("Handler"))
    reason = forms.CharField(label=_("Reason"), max_length=500, widget=forms.TextInput(attrs={"size": 60}))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        running = sorted(registry.handlers.keys() - PausedHandler.objects.names())
        self.fields["handler"].choices = [(name, name) for name in running]  # type: ignore[attr-defined]  # of a ChoiceField


@admin.register(PausedHandler)
class PausedHandlerAdmin(OutboxAdmin):
    """The list of paused handlers, and the page that pauses another."""

    list_display = ("dotted_handler", "reason", "since", "waiting")
    fields = ("handler", "reason", "since", "waiting")
    readonly_fields = fields
    actions = ("resume_selected",)
    change_form_template = "admin/outbox/pausedhandler/change_form.html"

    since = staticmethod(formatting.timestamp_column("paused_at", _("paused since")))

    @admin.display(description=_("handler"))
    def dotted_handler(self, paused: PausedHandler) -> SafeString:
        """Show the handler."""
        return formatting.dotted(paused.handler)

    @admin.display(description=_("waiting"))
    def waiting(self, paused: PausedHandler) -> str:
        """Show how many deliveries of the handler wait."""
        return formatting.limited(paused.waiting(_WAITING_LIMIT), _WAITING_LIMIT)

    # ------------------------------------------------------------ actions

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may pause and resume; this takes the change permission."""
        return self.has_app_permission(request, CHANGE_PAUSED)

    @admin.action(permissions=["pause"], description=_("Resume handlers"))
    def resume_selected(self, request: HttpRequest, queryset: Any) -> None:
        """Resume the selected handlers."""
        self._resume(request, request.POST.getlist(ACTION_CHECKBOX_NAME))

    def get_urls(self) -> list[Any]:
        """Add the addresses of the buttons; the handler is a parameter, since its name may hold any text."""
        wrap = self.admin_site.admin_view
        return [
            path("pause/", wrap(self.pause_view), name="outbox_pausedhandler_pause"),
            path("resume/", wrap(self.resume_view), name="outbox_pausedhandler_resume"),
            *super().get_urls(),
        ]

    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the handler and the reason, then pause the handler."""
        self._require_permission(request)
        chosen = request.GET.get("handler", "")
        form = PauseForm(request.POST or None, initial={"handler": chosen})
        if form.is_valid():
            actions.pause(form.cleaned_data["handler"], request.user, form.cleaned_data["reason"])
            text = _now("%(handler)s is paused; deliveries that are already dispatched still run.")
            self.message_user(request, text % form.cleaned_data, messages.SUCCESS)
            return HttpResponseRedirect(self._back(request, form.cleaned_data["handler"] if chosen else ""))
        breadcrumbs = [(self.url("pausedhandler_changelist"), self.opts.verbose_name_plural)]
        context = self.page_context(
            request,
            title=_("Pause a handler"),
            form=form,
            back=self._back(request, chosen),
            breadcrumbs=breadcrumbs,
        )
        return TemplateResponse(request, "admin/outbox/pause.html", context)

    def resume_view(self, request: HttpRequest) -> HttpResponse:
        """Resume one handler."""
        self._require_permission(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._resume(request, [request.POST.get("handler", "")])
        return HttpResponseRedirect(self._back(request, request.POST.get("back_to", "")))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, with its button if the user may pause."""
        return super().changelist_view(request, {**self.pause_context(request), **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show one paused handler, with its button if the user may resume."""
        context = {**self.pause_context(request), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def _resume(self, request: HttpRequest, handlers: list[str]) -> None:
        resumed = actions.resume(handlers, request.user)
        text = ngettext("%(count)s handler was resumed.", "%(count)s handlers were resumed.", resumed)
        level = messages.SUCCESS if resumed else messages.WARNING
        self.message_user(request, text % {"count": formatting.number(resumed)}, level)
        if resumed and actions.still_waits(handlers):
            more = _now("Relays make the other waiting deliveries due.")
            self.message_user(request, more, messages.INFO)

    def _back(self, request: HttpRequest, handler: str) -> str:
        page = self.url("handlerstats_handler", handler) if handler else self.url("pausedhandler_changelist")
        return self.back(request, page)

    def _require_permission(self, request: HttpRequest) -> None:
        if not self.has_pause_permission(request):
            raise PermissionDenied

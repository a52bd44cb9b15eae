"""Paused handlers: which, why, what waits, and the buttons that pause and resume."""

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

from ..models import PausedHandler
from ..registry import registry
from . import display, operations
from .base import CHANGE_PAUSED, OutboxAdmin

# Counting what waits for one handler stops here.
_WAITING_LIMIT = 10_000


class PauseForm(forms.Form):
    """Which handler is to be paused, and why."""

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

    since = staticmethod(display.moment_of("paused_at", _("paused since")))

    @admin.display(description=_("handler"))
    def dotted_handler(self, paused: PausedHandler) -> SafeString:
        """Show the handler."""
        return display.dotted(paused.handler)

    @admin.display(description=_("waiting"))
    def waiting(self, paused: PausedHandler) -> str:
        """Show how many of its deliveries relays have left aside."""
        count = paused.waiting(_WAITING_LIMIT)
        return f"{count}+" if count == _WAITING_LIMIT else str(count)

    # ------------------------------------------------------------ operations

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may pause and resume: the change permission says so."""
        return self.may(request, CHANGE_PAUSED)

    @admin.action(permissions=["pause"], description=_("Resume handlers"))
    def resume_selected(self, request: HttpRequest, queryset: Any) -> None:
        """Let the deliveries of the selected handlers go."""
        self._resume(request, request.POST.getlist(ACTION_CHECKBOX_NAME))

    def get_urls(self) -> list[Any]:
        """Add the addresses of the buttons; a handler's name goes beside them, since it may hold anything."""
        wrap = self.admin_site.admin_view
        return [
            path("pause/", wrap(self.pause_view), name="outbox_pausedhandler_pause"),
            path("resume/", wrap(self.resume_view), name="outbox_pausedhandler_resume"),
            *super().get_urls(),
        ]

    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the handler and the reason, then pause it."""
        self._require_permission(request)
        chosen = request.GET.get("handler", "")
        form = PauseForm(request.POST or None, initial={"handler": chosen})
        if form.is_valid():
            operations.pause(form.cleaned_data["handler"], request.user, form.cleaned_data["reason"])
            text = _now("%(handler)s is paused; what was dispatched before still runs.")
            self.message_user(request, text % form.cleaned_data, messages.SUCCESS)
            return HttpResponseRedirect(self._back(form.cleaned_data["handler"] if chosen else ""))
        trail = [(self.url("pausedhandler_changelist"), self.opts.verbose_name_plural)]
        context = self.page_context(
            request, title=_("Pause a handler"), form=form, back=self._back(chosen), trail=trail
        )
        return TemplateResponse(request, "admin/outbox/pause.html", context)

    def resume_view(self, request: HttpRequest) -> HttpResponse:
        """Let the deliveries of one handler go."""
        self._require_permission(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._resume(request, [request.POST.get("handler", "")])
        return HttpResponseRedirect(self._back(request.POST.get("back_to", "")))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, with its button for those who may use it."""
        return super().changelist_view(request, {**self.pause_buttons(request), **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show one paused handler, likewise."""
        context = {**self.pause_buttons(request), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def _resume(self, request: HttpRequest, handlers: list[str]) -> None:
        resumed = operations.resume(handlers, request.user)
        text = ngettext("%(count)d handler goes on.", "%(count)d handlers go on.", resumed)
        level = messages.SUCCESS if resumed else messages.WARNING
        self.message_user(request, text % {"count": resumed}, level)

    def _back(self, handler: str) -> str:
        return self.url("handlerstats_handler", handler) if handler else self.url("pausedhandler_changelist")

    def _require_permission(self, request: HttpRequest) -> None:
        if not self.has_pause_permission(request):
            raise PermissionDenied

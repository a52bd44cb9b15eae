"""The Django app: joins the broker, and imports the projects' handlers."""

from __future__ import annotations

from importlib import import_module

import dramatiq
from django.apps import AppConfig, apps
from django.utils.module_loading import module_has_submodule
from django.utils.translation import gettext_lazy as _

from .errors import DuplicateHandler
from .registry import registry


class OutboxConfig(AppConfig):
    """Configuration of the outbox app."""

    name = "outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Add the middleware to the broker, and import every app's `handlers` and `tasks`."""
        from . import checks, logs  # noqa: F401  # importing the checks registers them

        join_broker(dramatiq.get_broker())
        # A handler may be declared on another broker than the default one.
        registry.on_broker = join_broker
        logs.connect()
        _import_handlers()


def _import_handlers() -> None:
    for app in apps.get_app_configs():
        for name in ("handlers", "tasks"):
            if not module_has_submodule(app.module, name):
                continue
            try:
                import_module(f"{app.name}.{name}")
            except DuplicateHandler:
                # Kept in the registry: the check reports it with its remedy, and publishing refuses.
                continue


def join_broker(broker: dramatiq.Broker) -> None:
    """Put the outbox middleware first on a broker; does nothing if it is there."""
    from .middleware import OutboxMiddleware

    if any(isinstance(middleware, OutboxMiddleware) for middleware in broker.middleware):
        return
    first = type(broker.middleware[0]) if broker.middleware else None
    broker.add_middleware(OutboxMiddleware(), before=first)

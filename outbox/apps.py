"""The Django app, which adds the middleware to the broker and imports the project's handlers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import dramatiq
from django.apps import AppConfig, apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string, module_has_submodule
from django.utils.translation import gettext_lazy as _

from .early_stop import stop_while_starting
from .errors import DuplicateHandler
from .observability import logs, tracing
from .registry import registry

_DEFAULT_BROKER = "dramatiq.brokers.rabbitmq.RabbitmqBroker"
_TASK_BACKENDS = "outbox.contrib.tasks."


class OutboxConfig(AppConfig):
    """Configuration of the outbox app."""

    name = "outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        # Django makes the apps' configurations before it imports their models, which takes longer.
        stop_while_starting()
        if _is_installed("django_dramatiq"):
            # django_dramatiq imports the broker when its app is loaded. Its error would name the client only.
            _check_broker(getattr(settings, "DRAMATIQ_BROKER", None))

    def ready(self) -> None:
        """Add the middleware to the broker, and import every app's `handlers` and `tasks`."""
        from . import checks  # noqa: F401  # the import registers the checks

        join_broker(_default_broker())
        # A handler may use another broker than the default one.
        registry.on_broker = join_broker
        logs.connect()
        from .signals import background_handler  # noqa: F401  # declares the handler of send_background()

        _import_handlers()
        _start_task_backends()


def _is_installed(package: str) -> bool:
    return any(entry.partition(".")[0] == package for entry in settings.INSTALLED_APPS)


def _check_broker(configured: dict[str, Any] | None) -> None:
    """Import the class of the broker.

    Raises:
        ImproperlyConfigured: if it cannot be imported, with the remedy.
    """
    path = _DEFAULT_BROKER if configured is None else configured.get("BROKER")
    fact = f"the broker {path!r} of DRAMATIQ_BROKER"
    if configured is None:
        fact = f"DRAMATIQ_BROKER is not set, and its default {path!r}"
    try:
        import_string(str(path))
    except ImportError as error:
        raise ImproperlyConfigured(f"{fact} cannot be imported: {error}; {_remedy(error)}") from error


def _remedy(error: ImportError) -> str:
    setting = "set DRAMATIQ_BROKER to your broker, such as {'BROKER': 'dramatiq.brokers.redis.RedisBroker'}"
    extra = {"pika": "rabbitmq", "redis": "redis"}.get(error.name or "")
    return f"{setting}, or install django-dramatiq-outbox[{extra}]" if extra else setting


def _default_broker() -> dramatiq.Broker:
    try:
        return dramatiq.get_broker()
    except ImportError as error:
        # Without django_dramatiq, Dramatiq makes a RabbitmqBroker.
        raise ImproperlyConfigured(
            "no Dramatiq broker is set: add 'django_dramatiq' to INSTALLED_APPS and set DRAMATIQ_BROKER; "
            f"Dramatiq's default cannot be imported: {error}"
        ) from error


def _import_handlers() -> None:
    for app in apps.get_app_configs():
        for name in ("handlers", "tasks"):
            if not module_has_submodule(app.module, name):
                continue
            try:
                import_module(f"{app.name}.{name}")
            except DuplicateHandler:
                # The registry keeps the error: a check reports it, and publishing is refused.
                continue


def _start_task_backends() -> None:
    """Make handlers of the tasks of the outbox's backends in TASKS.

    Raises:
        ImproperlyConfigured: if Django's task framework is missing.
    """
    tasks = getattr(settings, "TASKS", None) or {}
    try:
        aliases = [
            alias for alias, backend in tasks.items() if is_outbox_backend(str(backend.get("BACKEND")))
        ]
        if not aliases:
            return
        from .contrib.tasks.declared import declared_tasks
    except ModuleNotFoundError as error:
        if error.name != "django_tasks":
            raise
        raise ImproperlyConfigured(
            "TASKS names the backend of the outbox, and Django before 6.0 has no task framework; "
            "install django-dramatiq-outbox[tasks]"
        ) from error
    declared_tasks.start(*aliases)


def is_outbox_backend(path: str) -> bool:
    """Return whether a backend of tasks is the outbox's, or a subclass."""
    try:
        backend = import_string(path)
    except ImportError:
        if path.startswith(_TASK_BACKENDS):
            raise
        # Django reports it when the backend is used.
        return False
    return any(base.__module__.startswith(_TASK_BACKENDS) for base in backend.__mro__)


def join_broker(broker: dramatiq.Broker) -> None:
    """Add the outbox middleware to a broker as the first one, unless the broker has it."""
    from outbox.worker.middleware import OutboxMiddleware

    tracing.note_joined(broker)
    if any(isinstance(middleware, OutboxMiddleware) for middleware in broker.middleware):
        return
    first = type(broker.middleware[0]) if broker.middleware else None
    broker.add_middleware(OutboxMiddleware(), before=first)

"""System checks: faults of a project's configuration, and their remedies.
outbox.E001  OUTBOX holds an unknown key or a value of the wrong type
outbox.E002  no Dramatiq broker: django_dramatiq is not installed
outbox.E003  a database that the outbox does not support
outbox.E004  a handler or receiver is declared twice under one name
outbox.E005  a database without autocommit
outbox.E006  an async handler, and a broker without the AsyncIO middleware
outbox.E007  the default broker was replaced after handlers had been declared
outbox.E008  a former name of a handler is also a name, or a former name, of another handler
outbox.I001  the models whose saves are atomic, because they have background receivers
outbox.I002  a faster consumer is available for this Redis broker
outbox.W001  RabbitmqBroker(confirm_delivery=False) may drop messages sent without the outbox
outbox.W002  SQLite: one relay only
outbox.W003  the broker lacks the Retries middleware
outbox.W004  AdminMiddleware writes a row for each message that the relay sends
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import iscoroutinefunction
from typing import Any

import dramatiq
from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import connections

from .conf import get_settings, problems
from .errors import InvalidSetting
from .operations.former_names import clashes
from .registry import registry
from .signals.atomic_saves import atomic_models
from .worker.retries import has_retries

_SUPPORTED = ("postgresql", "sqlite")


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse unknown and ill-typed settings."""
    return [
        Error(problem, hint="See the settings reference of django-dramatiq-outbox.", id="outbox.E001")
        for problem in problems(getattr(django_settings, "OUTBOX", {}))
    ]


@register()
def check_broker(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse a project without a broker, and warn of a broker whose options lose messages or waste time."""
    if not apps.is_installed("django_dramatiq"):
        return [
            Error(
                "django_dramatiq is not in INSTALLED_APPS, so no broker is configured.",
                hint="Add 'django_dramatiq' and set DRAMATIQ_BROKER.",
                id="outbox.E002",
            )
        ]
    broker = dramatiq.get_broker()
    return [
        *_check_confirm_delivery(broker),
        *_check_retries(broker),
        *_check_admin_middleware(broker),
        *_check_consumer(broker),
    ]


def _check_confirm_delivery(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    if getattr(broker, "confirm_delivery", True) is False:
        yield Warning(
            "RabbitmqBroker runs with confirm_delivery=False: RabbitMQ may drop messages unnoticed.",
            hint="The relay always waits for confirms, but messages sent without the outbox do not: "
            "set DRAMATIQ_BROKER['OPTIONS']['confirm_delivery'] = True.",
            id="outbox.W001",
        )


def _check_retries(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    if not has_retries(broker):
        yield Warning(
            "The broker has no Retries middleware: a delivery fails when its handler raises once.",
            hint="Add 'dramatiq.middleware.Retries' to DRAMATIQ_BROKER['MIDDLEWARE'].",
            id="outbox.W003",
        )


def _check_admin_middleware(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    names = {
        f"{type(middleware).__module__}.{type(middleware).__qualname__}" for middleware in broker.middleware
    }
    if "django_dramatiq.middleware.AdminMiddleware" in names:
        yield Warning(
            "django_dramatiq's AdminMiddleware writes a row for each message that the relay sends.",
            hint="Remove it from DRAMATIQ_BROKER['MIDDLEWARE']: the outbox's admin shows every delivery.",
            id="outbox.W004",
        )


def _check_consumer(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    # By name, since a project with another broker may have no client of Redis.
    if f"{type(broker).__module__}.{type(broker).__qualname__}" == "dramatiq.brokers.redis.RedisBroker":
        yield Info(
            "Dramatiq's RedisBroker polls Redis: messages wait for the next poll, and throughput is limited.",
            hint="Set DRAMATIQ_BROKER['BROKER'] = 'outbox.brokers.RedisBroker', which uses the same keys.",
            id="outbox.I002",
        )


@register(Tags.database)
def check_databases(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Refuse databases that lack a feature the outbox needs."""
    return [
        message for alias in _databases() if alias in (databases or ()) for message in _check_database(alias)
    ]


@register()
def check_engines(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse unsupported database engines; needs no connection."""
    messages: list[CheckMessage] = []
    for alias in _databases():
        vendor = connections[alias].vendor
        if vendor not in _SUPPORTED:
            messages.append(
                Error(
                    f"Database {alias!r} is {connections[alias].display_name}, which is not supported; "
                    "its locking differs too much from PostgreSQL's.",
                    hint="Use PostgreSQL, or SQLite for a small site with one relay.",
                    id="outbox.E003",
                )
            )
        elif vendor == "sqlite" and not django_settings.DEBUG:
            messages.append(
                Warning(
                    f"Database {alias!r} is SQLite, which cannot skip locked rows: run one relay only.",
                    hint="Use PostgreSQL for several relays and for the fast paths.",
                    id="outbox.W002",
                )
            )
    return messages


@register()
def check_autocommit(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse databases in which Django never commits the changes of relays and workers."""
    return [
        Error(
            f"Database {alias!r} has AUTOCOMMIT = False: transaction.atomic() then commits nothing, so the "
            "relay would send each delivery again and again.",
            hint=f"Remove 'AUTOCOMMIT' from DATABASES[{alias!r}].",
            id="outbox.E005",
        )
        for alias in _databases()
        if not connections[alias].settings_dict["AUTOCOMMIT"]
    ]


def _check_database(alias: str) -> Iterable[CheckMessage]:
    features = connections[alias].features
    if connections[alias].vendor == "postgresql" and not features.has_select_for_update_skip_locked:
        yield Error(
            f"Database {alias!r} cannot skip locked rows.",
            hint="Use a PostgreSQL version that Django supports.",
            id="outbox.E003",
        )


@register()
def check_handlers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse two handlers with the same name, or with the same former name."""
    published = "Publishing is refused until the names differ: one of the handlers would get no events."
    return [
        *(Error(fact, hint=published, id="outbox.E004") for fact in registry.duplicates),
        *(
            Error(fact, hint="Remove it from former_names=… of one handler.", id="outbox.E008")
            for fact in clashes(registry.handlers)
        ),
    ]


@register()
def check_atomic_saves(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Tell which models have atomic saves: their `save_base` differs from Django's."""
    try:
        labels = sorted(model._meta.label for model in atomic_models())
    except InvalidSetting:
        # check_settings reports it.
        return []
    if not labels:
        return []
    return [
        Info(
            f"Saves of models with background receivers are atomic: {', '.join(labels)}.",
            hint="An error in any receiver of pre_save or post_save rolls the row back. "
            "OUTBOX['ATOMIC_SAVES'] = False turns this off.",
            id="outbox.I001",
        )
    ]


@register()
def check_async_handlers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse async handlers whose broker cannot run them."""
    return [
        Error(
            f"Handler {handler.name!r} is async, and its broker has no AsyncIO middleware: each run fails.",
            hint="Add 'dramatiq.middleware.AsyncIO' to DRAMATIQ_BROKER['MIDDLEWARE'].",
            id="outbox.E006",
        )
        for handler in registry.handlers.values()
        if iscoroutinefunction(handler.function) and not _has_asyncio(handler.actor.broker)
    ]


def _has_asyncio(broker: dramatiq.Broker) -> bool:
    return any(isinstance(middleware, dramatiq.middleware.AsyncIO) for middleware in broker.middleware)


@register()
def check_default_broker(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse a default broker that was set after handlers: its workers would not run them."""
    names = registry.left_on_replaced_broker(dramatiq.broker.global_broker)
    if not names:
        return []
    some = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        Error(
            f"dramatiq.set_broker() was called after the handlers were declared: no worker runs {some}.",
            hint="Configure the broker with DRAMATIQ_BROKER, or call set_broker() in the settings module. "
            "Give broker=… to handlers of another broker.",
            id="outbox.E007",
        )
    ]


def _databases() -> Sequence[str]:
    try:
        return get_settings().databases
    except InvalidSetting:
        # check_settings reports it.
        return ()

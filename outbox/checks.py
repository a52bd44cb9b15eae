"""System checks: what is wrong with a project's configuration, and how to mend it.

outbox.E001  OUTBOX holds an unknown key or a value of the wrong type
outbox.E002  no Dramatiq broker: django_dramatiq is not installed
outbox.E003  a database that the outbox does not support
outbox.E004  a handler or receiver is declared twice under one name
outbox.W001  RabbitmqBroker(confirm_delivery=False) may drop what is sent past the outbox
outbox.W002  SQLite: one relay only
outbox.W003  the broker lacks the Retries middleware
outbox.W004  AdminMiddleware writes a row for each message that the relay sends
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import dramatiq
from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from .conf import get_settings, problems
from .errors import InvalidSetting
from .registry import registry

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
    """Look for a broker, and for options of it that lose messages."""
    if not apps.is_installed("django_dramatiq"):
        return [
            Error(
                "django_dramatiq is not in INSTALLED_APPS, so no broker is configured.",
                hint="Add 'django_dramatiq' and set DRAMATIQ_BROKER.",
                id="outbox.E002",
            )
        ]
    broker = dramatiq.get_broker()
    return [*_check_confirm_delivery(broker), *_check_retries(broker), *_check_admin_middleware(broker)]


def _check_confirm_delivery(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    if getattr(broker, "confirm_delivery", True) is False:
        yield Warning(
            "RabbitmqBroker runs with confirm_delivery=False: RabbitMQ may drop messages unnoticed.",
            hint="The relay always waits for confirms, but retries and actors sent past the outbox do not: "
            "set DRAMATIQ_BROKER['OPTIONS']['confirm_delivery'] = True.",
            id="outbox.W001",
        )


def _check_retries(broker: dramatiq.Broker) -> Iterable[CheckMessage]:
    if not any(isinstance(middleware, dramatiq.middleware.Retries) for middleware in broker.middleware):
        yield Warning(
            "The broker has no Retries middleware: a handler that raises once ends as failed.",
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


@register(Tags.database)
def check_databases(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Refuse databases on which nothing is promised."""
    return [
        message for alias in _served() if alias in (databases or ()) for message in _check_database(alias)
    ]


@register()
def check_engines(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse databases by their engine, which needs no connection."""
    messages: list[CheckMessage] = []
    for alias in _served():
        vendor = connections[alias].vendor
        if vendor not in _SUPPORTED:
            messages.append(
                Error(
                    f"Database {alias!r} is {connections[alias].display_name}, which is not supported; "
                    "locking differs too much between databases to promise anything.",
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
    """Report names that two functions claim."""
    return [
        Error(
            fact,
            hint="Until then publishing is refused: one of the two would get no events.",
            id="outbox.E004",
        )
        for fact in registry.duplicates
    ]


def _served() -> Sequence[str]:
    try:
        return get_settings().databases
    except InvalidSetting:
        # check_settings says so.
        return ()

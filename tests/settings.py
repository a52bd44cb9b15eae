"""The Django project of the tests, for pytest and for the processes that acceptance tests start.

Everything that varies comes from the environment, so that a child process lands on the same services:
`DATABASE_URL`, `OUTBOX_TEST_BROKER_URL` and `OUTBOX_TEST_PREFIX` (all set by `tests/conftest.py`), and
`OUTBOX_TEST_OPTIONS`, the OUTBOX setting as JSON; `OUTBOX_TEST_BROKER_OPTIONS`, more options of the broker;
and `OUTBOX_TEST_SECOND_URL`, the database of the alias `second`, which only some tests use.
"""

import json
import os
from typing import Any
from urllib.parse import urlsplit

import dj_database_url

SECRET_KEY = "only-for-tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "tests.urls"
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_dramatiq",
    "outbox",
    "tests.testapp",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

OUTBOX = json.loads(os.environ.get("OUTBOX_TEST_OPTIONS", "{}"))

# Queue names of the test app start with this, so that sessions sharing a RabbitMQ server do not meet.
TEST_PREFIX = os.environ.get("OUTBOX_TEST_PREFIX", "outbox_test_")

# The default lets tools import these settings; nothing connects to it.
DATABASES = {"default": dj_database_url.parse(os.environ.get("DATABASE_URL", "postgres:///postgres"))}
DATABASES["default"]["TEST"] = {"NAME": os.environ.get("OUTBOX_TEST_DATABASE_NAME")}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Writers wait for their turn from the start instead of failing in the middle.
    DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 30}
else:
    # For the tests of several databases; pytest-django makes it only when one of them was chosen.
    _name = os.environ.get("OUTBOX_TEST_DATABASE_NAME")
    _url = os.environ.get("OUTBOX_TEST_SECOND_URL") or os.environ.get("DATABASE_URL", "postgres:///postgres")
    DATABASES["second"] = dj_database_url.parse(_url)
    DATABASES["second"]["TEST"] = {"NAME": f"{_name}_second" if _name else None}


def broker_settings(url: str) -> dict[str, Any]:
    """Return `BROKER` and `OPTIONS` for a broker's URL; without one, the broker in this process's memory."""
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        options = {"url": url, "namespace": TEST_PREFIX.rstrip("_")}
        return {"BROKER": "dramatiq.brokers.redis.RedisBroker", "OPTIONS": options}
    if scheme in ("amqp", "amqps"):
        rabbitmq = {"url": url, "confirm_delivery": True}
        return {"BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker", "OPTIONS": rabbitmq}
    if not url:
        return {"BROKER": "dramatiq.brokers.stub.StubBroker", "OPTIONS": {}}
    raise ValueError(f"OUTBOX_TEST_BROKER_URL: no broker for {url!r}; use redis://… or amqp://…")


_broker = broker_settings(os.environ.get("OUTBOX_TEST_BROKER_URL", ""))
_broker["OPTIONS"] |= json.loads(os.environ.get("OUTBOX_TEST_BROKER_OPTIONS", "{}"))

DRAMATIQ_BROKER = {
    **_broker,
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.ShutdownNotifications",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Pipelines",
        "dramatiq.middleware.Retries",
        "dramatiq.middleware.AsyncIO",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("outbox", "relay")},
}

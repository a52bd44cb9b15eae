"""The Django project of the tests, for pytest and for the processes that acceptance tests start.

The environment contains all varying values, so that a child process uses the same services.

`DATABASE_URL`, `OUTBOX_TEST_DATABASE_NAME` and `OUTBOX_TEST_PREFIX`: set by `tests/conftest.py`.
`OUTBOX_TEST_BROKER_URL`: the broker; if not set, the broker is in the memory of the process.
`OUTBOX_TEST_BROKER_OPTIONS`: more options of the broker, as JSON.
`OUTBOX_TEST_REDIS_BROKER`: another class for Redis, such as `dramatiq.brokers.redis.RedisBroker`.
`OUTBOX_TEST_OPTIONS`: the OUTBOX setting, as JSON.
`OUTBOX_TEST_DATABASE_OPTIONS`: more OPTIONS of the default database, as JSON.
`OUTBOX_TEST_SECOND_URL`: the database of the alias `second`, which only some tests use.
`OUTBOX_TEST_NAIVE_ZONE`: a time zone, such as `Asia/Kolkata`; the project then has `USE_TZ = False`.
"""

import json
import os
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
import django

SECRET_KEY = "only-for-tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
TIME_ZONE = os.environ.get("OUTBOX_TEST_NAIVE_ZONE") or "UTC"
USE_TZ = not os.environ.get("OUTBOX_TEST_NAIVE_ZONE")
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

# Before Django 6.0, its task framework is a package of its own.
TASK_FRAMEWORK = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
if TASK_FRAMEWORK == "django_tasks":
    INSTALLED_APPS.append(TASK_FRAMEWORK)

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

# The prefix of queue names in the test app: sessions that share a RabbitMQ server have different queues.
TEST_PREFIX = os.environ.get("OUTBOX_TEST_PREFIX", "outbox_test_")

# The default lets tools import the settings; no test connects to it.
DATABASES = {"default": dj_database_url.parse(os.environ.get("DATABASE_URL", "postgres:///postgres"))}
DATABASES["default"]["TEST"] = {"NAME": os.environ.get("OUTBOX_TEST_DATABASE_NAME")}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A transaction takes the write lock when it begins; otherwise it could fail at its first write.
    DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 30}
else:
    # For the tests of several databases; pytest-django makes it only if one of them is selected.
    _name = os.environ.get("OUTBOX_TEST_DATABASE_NAME")
    _url = os.environ.get("OUTBOX_TEST_SECOND_URL") or os.environ.get("DATABASE_URL", "postgres:///postgres")
    DATABASES["second"] = dj_database_url.parse(_url)
    DATABASES["second"]["TEST"] = {"NAME": f"{_name}_second" if _name else None}

if _options := json.loads(os.environ.get("OUTBOX_TEST_DATABASE_OPTIONS", "{}")):
    DATABASES["default"].setdefault("OPTIONS", {}).update(_options)


def broker_settings(url: str) -> dict[str, Any]:
    """Return `BROKER` and `OPTIONS` for a broker's URL; without a URL, for a broker in memory."""
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        options = {"url": url, "namespace": TEST_PREFIX.rstrip("_")}
        broker = os.environ.get("OUTBOX_TEST_REDIS_BROKER", "outbox.brokers.RedisBroker")
        return {"BROKER": broker, "OPTIONS": options}
    if scheme in ("amqp", "amqps"):
        rabbitmq = {"url": url, "confirm_delivery": True}
        return {"BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker", "OPTIONS": rabbitmq}
    if scheme == "embedded":
        return {"BROKER": "outbox.brokers.EmbeddedBroker", "OPTIONS": {}}
    if not url:
        return {"BROKER": "dramatiq.brokers.stub.StubBroker", "OPTIONS": {}}
    raise ValueError(f"OUTBOX_TEST_BROKER_URL is {url!r}; use redis://…, amqp://… or embedded:")


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

_TASK_QUEUES = [f"{TEST_PREFIX}default", f"{TEST_PREFIX}other"]
TASKS = {
    "default": {
        "BACKEND": "outbox.contrib.tasks.OutboxBackend",
        "QUEUES": [*_TASK_QUEUES],
        "OPTIONS": {
            "min_backoff": 10,
            "max_backoff": 50,
            "max_retries": 1,
            "tasks": {
                "tests.testapp.jobs.add_in_order": {"key": "key", "ordered": True},
                "tests.testapp.jobs.fail_after_write": {"key": "word", "transactional": True},
            },
        },
    },
    "second": {"BACKEND": "outbox.contrib.tasks.OutboxBackend", "QUEUES": _TASK_QUEUES},
    "immediate": {"BACKEND": f"{TASK_FRAMEWORK}.backends.immediate.ImmediateBackend", "QUEUES": _TASK_QUEUES},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("outbox", "relay")},
}

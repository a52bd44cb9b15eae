"""Settings of the example; environment variables configure the demo's processes."""

import os
from datetime import timedelta
from pathlib import Path

import dj_database_url
import django

from .brokers import broker_from_url

EXAMPLE_DIR = Path(__file__).resolve().parents[1]

DEBUG = os.environ.get("EXAMPLE_DEBUG", "1") == "1"
SECRET_KEY = os.environ.get("EXAMPLE_SECRET_KEY", "only-for-the-example-on-this-machine")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_dramatiq",
    "outbox",
    "example.shop",
]

if django.VERSION < (6, 0):
    # The backport of Django's task framework.
    INSTALLED_APPS.append("django_tasks")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    # Adds the request and the user to the context of every event.
    "outbox.http.OutboxContextMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "example.project.urls"
WSGI_APPLICATION = "example.project.wsgi.application"

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

DATABASES = {
    "default": dj_database_url.config(
        default=f"sqlite:///{EXAMPLE_DIR / 'shop.sqlite3'}",
        # Workers and the relay keep their connections; `runserver` closes its own after each request.
        conn_max_age=60,
        conn_health_checks=True,
    ),
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DRAMATIQ_BROKER = broker_from_url(
    os.environ.get("DRAMATIQ_BROKER_URL", ""),
    namespace=os.environ.get("EXAMPLE_BROKER_NAMESPACE", "dramatiq"),
)

# A prefix of all queue names, so that a demo on a shared RabbitMQ server has its own queues.
SHOP_QUEUE_PREFIX = os.environ.get("EXAMPLE_QUEUE_PREFIX", "")

TASKS = {
    "default": {
        "BACKEND": "outbox.contrib.tasks.OutboxBackend",
        "QUEUES": [f"{SHOP_QUEUE_PREFIX}office"],
    }
}

# Read by `only_in_environment`.
ENVIRONMENT = os.environ.get("EXAMPLE_ENVIRONMENT", "development")

# The longest wait of an event for its batch to fill.
SHOP_ANALYTICS_WAIT = timedelta(seconds=1)

# The share of calls that the analytics service fails, to show retries.
SHOP_ANALYTICS_FAILURE_RATE = 0.2

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        name: {"handlers": ["console"], "level": "INFO", "propagate": False} for name in ("outbox", "relay")
    },
}

STATIC_URL = "static/"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True

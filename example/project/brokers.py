"""Build the `DRAMATIQ_BROKER` setting from a URL."""

from typing import Any
from urllib.parse import urlsplit

# Dramatiq's defaults without Prometheus, which would open a port for each process of the demo.
# The outbox app adds its own middleware when it starts.
MIDDLEWARE = [
    "dramatiq.middleware.AgeLimit",
    "dramatiq.middleware.TimeLimit",
    "dramatiq.middleware.ShutdownNotifications",
    "dramatiq.middleware.Callbacks",
    "dramatiq.middleware.Pipelines",
    "dramatiq.middleware.Retries",
    "django_dramatiq.middleware.DbConnectionsMiddleware",
]


def broker_from_url(url: str, *, namespace: str = "dramatiq") -> dict[str, Any]:
    """Return the setting for `redis://`, `amqp://` or `stub://`; an empty URL means the stub.

    Raises:
        ValueError: if no broker has the scheme of the URL.
    """
    scheme = urlsplit(url).scheme
    if scheme in {"redis", "rediss", "unix"}:
        return _setting("outbox.brokers.RedisBroker", url=url, namespace=namespace)
    if scheme in {"amqp", "amqps"}:
        # Without confirms RabbitMQ may drop a retry that a worker sends; the relay uses confirms in any case.
        return _setting("dramatiq.brokers.rabbitmq.RabbitmqBroker", url=url, confirm_delivery=True)
    if scheme in {"stub", ""}:
        return _setting("dramatiq.brokers.stub.StubBroker")
    raise ValueError(f"DRAMATIQ_BROKER_URL has the scheme {scheme!r}; use redis://, amqp:// or stub://.")


def _setting(broker: str, **options: Any) -> dict[str, Any]:
    return {"BROKER": broker, "OPTIONS": options, "MIDDLEWARE": MIDDLEWARE}

"""The shop's app configuration."""

import dramatiq
from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The shop."""

    name = "example.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the receivers; the outbox imports `handlers.py` and `tasks.py` automatically."""
        from . import audit, queues, receivers  # noqa: F401  # importing connects them

        # On a shared RabbitMQ server, another program may use the queue `default`.
        background = dramatiq.get_broker().get_actor("outbox.send_background")
        background.queue_name = queues.DEFAULT
        background.broker.declare_queue(queues.DEFAULT)

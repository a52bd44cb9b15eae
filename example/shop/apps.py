"""The shop's app configuration."""

import dramatiq
from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The shop."""

    name = "example.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect what is in neither `handlers.py` nor `tasks.py`, which the outbox finds by itself."""
        from example.shop import audit, queues, receivers  # noqa: F401  # importing connects them

        # On a RabbitMQ that the demo shares with others, `default` may be anybody's.
        background = dramatiq.get_broker().get_actor("outbox.send_background")
        background.queue_name = queues.DEFAULT
        background.broker.declare_queue(queues.DEFAULT)

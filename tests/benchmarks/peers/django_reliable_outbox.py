"""django-reliable-outbox: workers run handlers for the rows of the table, or write them to a Redis stream."""

from __future__ import annotations

import sys
from importlib import import_module

from tests.benchmarks import site

from .measuring import DjangoPeer

LOCAL = "reliable_outbox.destinations.local.LocalHandlers"
STREAM = "reliable_outbox.destinations.redis.RedisStreamDestination"

site.setup(
    "reliable_outbox",
    RELIABLE_OUTBOX={
        "BATCH_SIZE": 100,
        "DESTINATIONS": {
            "default": {"BACKEND": LOCAL},
            "stream": {
                "BACKEND": STREAM,
                "OPTIONS": {"url": site.BROKER_URL, "stream": f"{site.PREFIX}:stream"},
            },
        },
        "ROUTES": {"relayed.*": "stream"},
    },
)

WORKER = (sys.executable, "-m", "tests.benchmarks.peers.django_reliable_outbox", "outbox_worker")


def main() -> None:
    """Answer requests."""
    from reliable_outbox import publish
    from reliable_outbox.models import OutboxMessage

    site.migrate()
    workers = ((*WORKER, "--concurrency", "8"),)
    DjangoPeer(
        packages=("django-reliable-outbox", "Django", "psycopg", "redis"),
        tables=(OutboxMessage._meta.db_table,),
        enqueue=lambda: publish("bench.single", site.PAYLOAD),
        enqueue_for_relay=lambda: publish("relayed.single", site.PAYLOAD),
        pending="status = 'pending'",
        workers=workers,
        relays=workers,
    ).serve()


if __name__ == "__main__":
    if sys.argv[1:]:
        from django.core.management import execute_from_command_line

        import_module("tests.benchmarks.peers.django_reliable_outbox_handlers")
        execute_from_command_line(sys.argv)
    else:
        main()

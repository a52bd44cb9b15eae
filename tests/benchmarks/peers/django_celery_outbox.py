"""django-celery-outbox: a relay from the table to Celery."""

from __future__ import annotations

import sys

from tests.benchmarks import site

from .django_celery_outbox_app import app, bench
from .measuring import DjangoPeer

APP = "tests.benchmarks.peers.django_celery_outbox_app"
# An idle relay polls. Its batch is larger and its pause shorter than the defaults.
RELAY = (
    *(sys.executable, "-m", "tests.benchmarks.peers.django_celery_outbox", "celery_outbox_relay"),
    *("--batch-size", "500", "--idle-time", "0.02"),
)
WORKER = (
    *(sys.executable, "-m", "celery", "--app", APP, "--quiet", "worker", "--pool", "threads"),
    *("--concurrency", "8", "--loglevel", "WARNING"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)


def main() -> None:
    """Answer requests."""
    from django_celery_outbox.models import CeleryOutbox

    site.migrate()
    DjangoPeer(
        packages=("django-celery-outbox", "celery", "Django", "psycopg", "redis"),
        tables=(CeleryOutbox._meta.db_table,),
        enqueue=lambda: bench.delay(site.PAYLOAD),
        clear_broker=app.control.purge,
        workers=(WORKER, RELAY),
        relays=(RELAY,),
    ).serve()


if __name__ == "__main__":
    if sys.argv[1:]:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    else:
        main()

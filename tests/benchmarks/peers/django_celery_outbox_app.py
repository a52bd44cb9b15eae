"""A site with django-celery-outbox: the module of its relay and of Celery's workers."""

from __future__ import annotations

import logging
from typing import Any

import structlog

from tests.benchmarks import site
from tests.benchmarks.processes import Tally

# Logging of each message is not part of the measurement.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
site.setup(
    "django_celery_outbox", CELERY_OUTBOX_APP=f"tests.benchmarks.peers.{__name__.rpartition('.')[2]}.app"
)

from django_celery_outbox import OutboxCelery  # noqa: E402  # needs the settings

app = OutboxCelery("bench", broker=site.BROKER_URL)
app.conf.update(
    broker_transport_options={"global_keyprefix": f"{site.PREFIX}:"},
    task_default_queue=f"{site.PREFIX}_celery",
    task_ignore_result=True,
    worker_prefetch_multiplier=32,
    broker_connection_retry_on_startup=True,
)

tally = Tally()


@app.task(name="bench")
def bench(payload: dict[str, Any]) -> None:
    """Count."""
    tally.hit()

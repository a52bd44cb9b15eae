"""The servers and the database of a benchmark that is run by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from example import services


@contextmanager
def servers() -> Iterator[None]:
    """Start the servers unless others are given, set up Django, and make a database that goes afterwards."""
    with ExitStack() as stack:
        os.environ["DATABASE_URL"] = stack.enter_context(services.postgres())
        redis = stack.enter_context(services.redis())
        if redis is None:
            raise SystemExit("no Redis: set DRAMATIQ_BROKER_URL, or install redis-server")
        os.environ["OUTBOX_TEST_BROKER_URL"] = redis
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django

        django.setup()
        from django.test.utils import setup_databases, teardown_databases

        # A database of its own, so that a given server keeps what it holds.
        created = setup_databases(verbosity=0, interactive=False)
        try:
            yield
        finally:
            teardown_databases(created, verbosity=0)

"""Measure the outbox beside what the database and the broker allow: `make bench`.

Needs nothing: PostgreSQL and Redis come from wheels unless DATABASE_URL and DRAMATIQ_BROKER_URL name others.
What is compared runs in turn, round by round, so that both see the same noise; medians and ratios are
printed.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from example import services


def main() -> None:
    """Start the servers, make the tables, and run every benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="events a round of the relay's drain")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as stack:
        os.environ["DATABASE_URL"] = stack.enter_context(services.postgres())
        redis = stack.enter_context(services.redis())
        if redis is None:
            parser.error("no Redis: set DRAMATIQ_BROKER_URL, or install redis-server")
        os.environ["OUTBOX_TEST_BROKER_URL"] = redis
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django

        django.setup()
        from django.test.utils import setup_databases, teardown_databases

        # A database of its own, so that a given server keeps what it holds.
        created = setup_databases(verbosity=0, interactive=False)
        try:
            _run(options)
        finally:
            teardown_databases(created, verbosity=0)


def _run(options: argparse.Namespace) -> None:
    from tests.benchmarks import monitor, publishing, relaying

    publishing.main(rounds=options.rounds)
    relaying.main(events=options.events, rounds=options.rounds)
    monitor.main()


if __name__ == "__main__":
    main()

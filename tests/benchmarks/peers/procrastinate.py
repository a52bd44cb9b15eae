"""procrastinate: a queue in PostgreSQL, whose workers fetch jobs from the table; it needs no relay."""

from __future__ import annotations

import sys

from tests.benchmarks import site

from .measuring import DjangoPeer

site.setup(
    "procrastinate.contrib.django",
    PROCRASTINATE_IMPORT_PATHS=["tests.benchmarks.peers.procrastinate_tasks"],
)

WORKER = (sys.executable, "-m", "tests.benchmarks.peers.procrastinate", "procrastinate", "worker")


def main() -> None:
    """Answer requests."""
    from .procrastinate_tasks import bench

    site.migrate()
    DjangoPeer(
        packages=("procrastinate", "Django", "psycopg"),
        tables=("procrastinate_jobs", "procrastinate_events"),
        enqueue=lambda: bench.defer(payload=site.PAYLOAD),
        enqueue_many=lambda events: bench.batch_defer(*[{"payload": site.PAYLOAD}] * events),
        pending="status IN ('todo', 'doing')",
        workers=((*WORKER, "--concurrency=8"),),
    ).serve()


if __name__ == "__main__":
    if sys.argv[1:]:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    else:
        main()

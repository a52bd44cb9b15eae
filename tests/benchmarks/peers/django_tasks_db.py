"""django-tasks-db: Django's tasks in a table, whose worker runs one at a time; it needs no relay."""

from __future__ import annotations

import sys

from tests.benchmarks import site

from .measuring import DjangoPeer

site.setup(
    "django_tasks",
    "django_tasks_db",
    TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": ["default"]}},
    # No log line per task.
    LOGGING={"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}},
)

WORKER = (sys.executable, "-m", "tests.benchmarks.peers.django_tasks_db", "db_worker")


def main() -> None:
    """Answer requests."""
    from .django_tasks_db_tasks import bench

    site.migrate()
    from django_tasks_db.models import DBTaskResult

    DjangoPeer(
        packages=("django-tasks-db", "django-tasks", "Django", "psycopg"),
        tables=(DBTaskResult._meta.db_table,),
        pending="status IN ('READY', 'RUNNING')",
        enqueue=lambda: bench.enqueue(site.PAYLOAD),
        # The worker polls, so the interval is its latency; a shorter interval costs more CPU.
        workers=((*WORKER, "--interval", "0.02", "--no-startup-delay", "--verbosity", "0"),),
    ).serve()


if __name__ == "__main__":
    if sys.argv[1:]:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    else:
        main()

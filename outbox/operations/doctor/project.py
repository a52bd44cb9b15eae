"""The examination of the project: its system checks, and its processes beside its code."""

from __future__ import annotations

from collections.abc import Iterator

from django.core import checks
from dramatiq import Broker

from outbox.models import ProcessHeartbeat
from outbox.operations.health_figures import processes_of
from outbox.process_fields import process_fields
from outbox.registry import registry

from .finding import Finding, Severity

_PREFIX = "outbox."


def examine(alias: str, broker: Broker) -> Iterator[Finding]:
    """Yield the findings about the project's configuration, and about its live processes."""
    for message in checks.run_checks(databases=[alias]):
        if (message.id or "").startswith(_PREFIX) and message.level >= checks.WARNING:
            severity = Severity.ERROR if message.level >= checks.ERROR else Severity.WARNING
            fact = f"{message.id}: {message.msg}"
            yield Finding.of("system-check", fact, remedy=message.hint or "", severity=severity)
    alive = [process for process in processes_of(alias) if process.alive]
    here = process_fields()["version"]
    others = sorted({process.version for process in alive} - {here, ""})
    if others:
        yield Finding.of(
            "mixed-versions", f"processes run version {', '.join(others)}, and this code is {here}"
        )
    workers = [process for process in alive if process.kind == ProcessHeartbeat.Kind.WORKER]
    used = {handler.queue for handler in registry.handlers.values() if handler.actor.broker is broker}
    served = {queue for worker in workers for queue in worker.queues}
    for queue in sorted(used - served):
        yield Finding.of("queue-without-worker", f"no live worker serves the queue {queue!r}")
    known = broker.get_declared_queues()
    for queue in sorted(served - known):
        yield Finding.of("worker-of-unknown-queue", f"a worker serves the queue {queue!r}")

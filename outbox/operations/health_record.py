"""A health report as a dict for JSON: the same keys for the command and for the endpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .blocked_keys import BlockedKey
from .health_report import COUNT_LIMIT, LIST_LIMIT, Health


def health_record(health: Health) -> dict[str, Any]:
    """Return a report as a dict of JSON values; times are ISO 8601, ages are seconds."""
    return {
        "database": health.database,
        "verdict": health.verdict,
        "sentence": health.sentence,
        "measured_at": health.measured_at.isoformat(),
        **asdict(health.figures),
        "relays_alive": health.alive("relay"),
        "workers_alive": health.alive("worker"),
        "problems": [{**asdict(problem), "verdict": problem.kind.verdict} for problem in health.problems],
        "queues": [asdict(queue) for queue in health.queues],
        "processes": [asdict(process) for process in health.processes],
        "paused": [{**asdict(row), "paused_at": row.paused_at.isoformat()} for row in health.paused],
        "blocked_keys": [_blocked_record(blocked) for blocked in health.blocked_keys],
        "count_limit": COUNT_LIMIT,
        "list_limit": LIST_LIMIT,
    }


def _blocked_record(blocked: BlockedKey) -> dict[str, Any]:
    failed_at = blocked.failed_at.isoformat() if blocked.failed_at else None
    return {**asdict(blocked), "event_id": str(blocked.event_id), "failed_at": failed_at}

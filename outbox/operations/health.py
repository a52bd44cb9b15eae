"""The health of a database's outbox: one function for commands, pages, probes and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from django.db import DEFAULT_DB_ALIAS

from .blocked_keys import blocked_keys
from .health_figures import measure, paused_handlers, processes_of, queues_of
from .health_problems import find_problems
from .health_report import LIST_LIMIT, Health, Problem, Verdict

# Problems of the sentence at most; the list has all.
PROBLEMS_OF_SENTENCE = 2


def get_health(using: str = DEFAULT_DB_ALIAS, *, max_lag: timedelta | None = None) -> Health:
    """Measure the figures, and find the problems of a database's outbox.

    The number of statements follows the handlers with problems, and each statement reads a bounded part of a
    partial index.

    Args:
        using: the database alias.
        max_lag: the longest time from the due time of a delivery to its confirmation; None for any.
    """
    processes = processes_of(using)
    queues, overdue = queues_of(using, processes)
    figures = measure(using, queues, overdue)
    health = Health(
        database=using,
        verdict=Verdict.OK,
        sentence="OK: no problem was found",
        problems=(),
        figures=figures,
        queues=tuple(queues),
        processes=tuple(processes),
        paused=tuple(paused_handlers(using)),
        blocked_keys=tuple(blocked_keys(using, limit=LIST_LIMIT)),
        measured_at=datetime.now(UTC),
    )
    problems = find_problems(health, max_lag=max_lag)
    if not problems:
        return health
    verdict = problems[0].kind.verdict
    sentence = _sentence(verdict, problems)
    return replace(health, verdict=verdict, sentence=sentence, problems=tuple(problems))


def _sentence(verdict: Verdict, problems: Sequence[Problem]) -> str:
    causes = [problem.cause for problem in problems[:PROBLEMS_OF_SENTENCE]]
    left = len(problems) - len(causes)
    return f"{verdict.capitalize()}: {'; '.join(causes)}" + (f"; and {left} more" if left else "")

"""A check for django-health-check 4: `checks = ["outbox.contrib.health_check.OutboxHealthCheck"]`."""

from __future__ import annotations

import dataclasses

from django.db import DEFAULT_DB_ALIAS, Error
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from outbox.endpoints import recent_health
from outbox.operations.health_report import Verdict


@dataclasses.dataclass
class OutboxHealthCheck(HealthCheck):  # type: ignore[misc]  # the package has no annotations
    """Fails if the outbox of a database is in trouble, and warns of its warnings.

    The message has the kinds of the problems and no data of events, since anybody may see it.

    Args:
        database: the alias of the database.
    """

    database: str = DEFAULT_DB_ALIAS

    def run(self) -> None:
        """Check the verdict.

        Raises:
            ServiceUnavailable: for trouble, and for a database that does not answer.
            ServiceWarning: for a warning.
        """
        try:
            health = recent_health.get(self.database)
        except (Error, TimeoutError) as error:
            raise ServiceUnavailable("the database of the outbox does not answer") from error
        kinds = ", ".join(dict.fromkeys(problem.kind for problem in health.problems))
        if health.verdict == Verdict.TROUBLE:
            raise ServiceUnavailable(f"the outbox is in trouble: {kinds}")
        if health.verdict == Verdict.WARNING:
            raise ServiceWarning(f"the outbox has warnings: {kinds}")

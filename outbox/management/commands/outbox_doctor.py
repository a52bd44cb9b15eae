"""Examine the running system, and name the settings that break a promise."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox.operations.doctor import Severity, examine

from ._options import add_database, add_format, clear_errors, served_database
from ._output import as_json


class Command(BaseCommand):
    """Show the findings, the worst first."""

    help = (
        "Examines database, broker, middleware and processes, and names settings that break a promise, each "
        "with its remedy. Exits with 1 if there is an error."
    )
    # The findings contain the system checks.
    requires_system_checks: Any = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_format(parser)
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Write the findings as text or JSON, then fail if one is an error."""
        database = served_database(options["database"])
        with clear_errors(database):
            findings = examine(database)
        if options["format"] == "json":
            self.stdout.write(as_json([asdict(finding) for finding in findings]))
        else:
            for finding in findings:
                self.stdout.write(
                    f"{finding.severity:<7}  {finding.id}: {finding.fact}\n         {finding.remedy}"
                )
            if not findings:
                self.stdout.write("No finding: nothing that was examined breaks a promise.")
        errors = sum(finding.severity == Severity.ERROR for finding in findings)
        if errors:
            raise CommandError(f"{errors} of {len(findings)} findings are errors")

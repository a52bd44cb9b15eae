"""`manage.py close_day`: enqueue the task that adds up today's orders."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from example.shop.tasks import close_day


class Command(BaseCommand):
    """Enqueue the task."""

    help = "Let a worker add up today's orders, and print the id of the result."

    def handle(self, *args: Any, **options: Any) -> None:
        """Enqueue the task and print the id of its result."""
        result = close_day.enqueue(timezone.localdate().isoformat())
        self.stdout.write(result.id)

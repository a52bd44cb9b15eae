"""Fill an empty shop."""

from typing import Any

from django.core.management.base import BaseCommand

import outbox
from example.shop.catalogue import stock_up
from example.shop.models import Customer, Product


class Command(BaseCommand):
    """Fill the shop with goods and customers."""

    help = "Fill the shop with goods and customers; running it again changes nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        """Fill the shop and say what is in it."""
        # So that the audit knows where the products came from: there is no request here.
        with outbox.context(source="manage.py stock_up"):
            stock_up()
        self.stdout.write(f"{Product.objects.count()} products, {Customer.objects.count()} customers.")

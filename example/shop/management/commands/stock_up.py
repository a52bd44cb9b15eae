"""Fill an empty shop."""

from typing import Any

from django.core.management.base import BaseCommand

import outbox
from example.shop.catalogue import stock_up
from example.shop.models import Customer, Product


class Command(BaseCommand):
    """Fill the shop with products and customers."""

    help = "Fill the shop with products and customers; a second run changes nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        """Fill the shop and report the number of rows."""
        # The audit records the source, as there is no request here.
        with outbox.context(source="manage.py stock_up"):
            stock_up()
        self.stdout.write(f"{Product.objects.count()} products, {Customer.objects.count()} customers.")

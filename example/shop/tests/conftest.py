"""A customer, two products, and an analytics service that is never away."""

from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from example.shop.models import Customer, Order, Product
from example.shop.services import place_order


@pytest.fixture(autouse=True)
def _analytics_answer(settings: Any) -> None:
    settings.SHOP_ANALYTICS_FAILURE_RATE = 0


# With real commits a save that a background receiver hears of needs a transaction, in a test as elsewhere.
@pytest.fixture
@transaction.atomic
def mug(db: None) -> Product:
    """Return a product."""
    return Product.objects.create(name="Mug", price=Decimal("9.50"), stock=10)


@pytest.fixture
@transaction.atomic
def kettle(db: None) -> Product:
    """Return an expensive product."""
    return Product.objects.create(name="Kettle", price=Decimal("58.00"), stock=10)


@pytest.fixture
@transaction.atomic
def customer(db: None) -> Customer:
    """Return a customer."""
    return Customer.objects.create(name="Ada")


@pytest.fixture
def order(customer: Customer, mug: Product) -> Order:
    """Return an order of two mugs, none of whose handlers has run."""
    return place_order(customer, {mug: 2})

"""A customer, two products, and an analytics service that always answers."""

from decimal import Decimal
from typing import Any

import pytest

from example.shop.models import Customer, Order, Product
from example.shop.services import place_order


@pytest.fixture(autouse=True)
def _analytics_answer(settings: Any) -> None:
    settings.SHOP_ANALYTICS_FAILURE_RATE = 0


@pytest.fixture
def mug(db: None) -> Product:
    """Return a product."""
    return Product.objects.create(name="Mug", price=Decimal("9.50"), stock=10)


@pytest.fixture
def kettle(db: None) -> Product:
    """Return an expensive product."""
    return Product.objects.create(name="Kettle", price=Decimal("58.00"), stock=10)


@pytest.fixture
def customer(db: None) -> Customer:
    """Return a customer."""
    return Customer.objects.create(name="Ada")


@pytest.fixture
def order(customer: Customer, mug: Product) -> Order:
    """Return an order of two mugs whose handlers have not run."""
    return place_order(customer, {mug: 2})

"""The models of the events, and the table in which handlers record their effects."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from outbox import BulkSignalManager, BulkSignalQuerySet


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField(blank=True)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    customer = models.ForeignKey(Customer, null=True, blank=True, on_delete=models.CASCADE)
    status = models.CharField(max_length=20, default="pending")
    total = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    note = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"order {self.pk} ({self.status})"


class ProductBase(models.Model):
    """The parent in a multi-table inheritance: it has its own table."""

    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Product(ProductBase):
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)


class Effect(models.Model):
    """One effect of a handler; tests compare these rows with the events that they published."""

    handler = models.CharField(max_length=200)
    event_id = models.UUIDField(null=True, blank=True)
    key = models.CharField(max_length=200, blank=True)
    detail = models.JSONField(default=dict, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.handler} {self.key}"


class Shipment(models.Model):
    """The model whose signals have background receivers."""

    address = models.CharField(max_length=200)
    weight = models.DecimalField(max_digits=8, decimal_places=3, default=0)

    def __str__(self) -> str:
        return self.address


class NamedQuerySet(models.QuerySet["Tag"]):
    """A queryset that a project defines."""

    def named(self, name: str) -> NamedQuerySet:
        return self.filter(name=name)


class TagQuerySet(BulkSignalQuerySet["Tag"], NamedQuerySet):  # type: ignore[override]  # the plugin's as_manager
    """The project's queryset with the mixin for bulk signals."""

    signal_chunk_size = 2


class Basket(models.Model):
    """A model whose manager sends bulk signals."""

    name = models.CharField(max_length=100)

    objects: ClassVar[BulkSignalManager] = BulkSignalManager()

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=100)

    objects: ClassVar = models.Manager.from_queryset(TagQuerySet)()

    def __str__(self) -> str:
        return self.name


class Line(models.Model):
    """One of many rows of a basket."""

    basket = models.ForeignKey(Basket, null=True, blank=True, on_delete=models.CASCADE, related_name="lines")
    sku = models.CharField(max_length=50, unique=True)
    quantity = models.IntegerField(default=1)
    tags = models.ManyToManyField(Tag, blank=True, related_name="lines")

    objects: ClassVar[BulkSignalManager] = BulkSignalManager()

    def __str__(self) -> str:
        return self.sku

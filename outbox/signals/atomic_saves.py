"""Atomic saves: the row and the events of its `pre_save` and `post_save` commit together.

Django ends the transaction of a save before it sends `post_save`, so a save in autocommit mode would commit
the row without the event. The outbox therefore wraps `Model.save_base`, the one method through which each
save of Django passes. A wrapper of each model would not do: fixtures call `Model.save_base` unbound.

Deletions and changes of many-to-many relations need no wrapper: Django sends their signals in a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from typing import Any

from django.apps import apps
from django.db import connections, router, transaction
from django.db.models import Model
from django.db.models.signals import post_save, pre_save
from django.dispatch import Signal

from outbox.conf import get_settings
from outbox.publishing.own_transaction import has_own_transaction

from .recorder import Subscription, recorder_for

SAVE_SIGNALS = (pre_save, post_save)

_django_save_base = Model.save_base


def make_saves_atomic(signals: Iterable[Signal]) -> None:
    """Wrap `Model.save_base` if one of the signals belongs to a save; a second call changes nothing."""
    global _django_save_base
    if _is_wrapped() or not any(signal in SAVE_SIGNALS for signal in signals):
        return
    # Read now, because another package may have wrapped the method since the import.
    _django_save_base = Model.save_base
    Model.save_base = _save_base  # type: ignore[method-assign]


def is_atomic(model: type[Model]) -> bool:
    """Return whether a background receiver may get a save of the model."""
    return any(
        _may_publish(subscription, model)
        for signal in SAVE_SIGNALS
        for subscription in recorder_for(signal).subscribed_to(model)
    )


def atomic_models() -> list[type[Model]]:
    """Return the models whose saves are atomic now."""
    if not get_settings().atomic_saves:
        return []
    return [model for model in apps.get_models() if is_atomic(model)]


def _is_wrapped() -> bool:
    return getattr(Model.save_base, "_by_outbox", False)


def _may_publish(subscription: Subscription, model: type[Model]) -> bool:
    """Return whether the condition of a subscription can allow a save of the model."""
    allowed = subscription.when.models() if subscription.when else None
    if allowed is None:
        return True
    bases = [base for base in model.__mro__ if issubclass(base, Model) and base is not Model]
    labels = {base._meta.label_lower for base in bases}
    return any(ref.lower() in labels if isinstance(ref, str) else ref in bases for ref in allowed)


@wraps(_django_save_base)
def _save_base(
    self: Model,
    raw: bool = False,
    force_insert: Any = False,
    force_update: bool = False,
    using: str | None = None,
    update_fields: Any = None,
) -> None:
    if not (is_atomic(type(self)) and get_settings().atomic_saves):
        return _django_save_base(self, raw, force_insert, force_update, using, update_fields)
    # The router is asked once, so that transaction and row have the same database.
    alias = using or router.db_for_write(type(self), instance=self)
    # Inside a transaction of the caller an error ends that transaction, as for `Model.delete()`. In a
    # TestCase a savepoint takes the place of the transaction that the save has in production.
    savepoint = not has_own_transaction(connections[alias])
    with transaction.atomic(using=alias, savepoint=savepoint):
        return _django_save_base(self, raw, force_insert, force_update, alias, update_fields)


_save_base._by_outbox = True  # type: ignore[attr-defined]

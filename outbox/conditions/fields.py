"""The condition that compares a field with what the database holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Model

from outbox.conditions import tracking
from outbox.conditions.base import Condition, ModelRef, sole_names
from outbox.errors import RegistrationError


class _FieldChanged(Condition):
    def __init__(self, names: tuple[str, ...], model: ModelRef | None) -> None:
        self.names = names
        self.model = model

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return bool(self._changes(kwargs))

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        return {"changes": self._changes(kwargs)}

    def track(self, models: tuple[ModelRef, ...] | None) -> None:
        # A model that was named was tracked at once.
        if self.model is None:
            tracking.track(models, self.names)

    def _changes(self, arguments: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        instance = arguments.get("instance")
        if not isinstance(instance, Model) or arguments.get("raw"):
            return {}
        return tracking.changes(instance, self.names, arguments)


def only_when_field_changed(*fields: str, model: ModelRef | None = None) -> Condition:
    """Allow saves that change one of these fields in the database.

    The receiver gets `changes={field: (old, new)}`. The old value is what this instance last saw in the
    database, without a query. A new instance has changed from None. Where nothing is known of a value (a
    deferred field that is assigned without being read, a database expression), a save counts as a change and
    the value is `UNKNOWN`. Loading a fixture (`raw`) changes nothing. Foreign keys give primary keys.

    Old values are kept from the moment an instance is loaded, so the models must be known by then: from
    `model=`, from `only_for_models(…) & …`, or from the `sender` of `outbox.receiver`. As a bare decorator it
    keeps these fields of every model that has them.

    Raises:
        RegistrationError: if no field is given, or `model` lacks one.
    """
    if not fields:
        raise RegistrationError("only_when_field_changed() names no field; give one such as 'status'")
    names = sole_names(fields)
    if model is not None:
        tracking.track((model,), names)
    return _FieldChanged(names, model)

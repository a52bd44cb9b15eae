"""The columns of a model that a condition may name."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db.models import Field, Model

from outbox.errors import RegistrationError, suggestion


def columns_of(model: type[Model]) -> dict[str, Field[Any, Any]]:
    """Return the fields with a column, by name and by attname."""
    fields = model._meta.concrete_fields
    return {field.attname: field for field in fields} | {field.name: field for field in fields}


# Only for saves: a class that Django is still preparing can gain fields.
cached_columns_of = cache(columns_of)


def check_names(model: type[Model], names: tuple[str, ...], required: int) -> None:
    """Refuse names that a model lacks, and names of generated fields.

    Args:
        required: how many of the names the model must have.

    Raises:
        RegistrationError: with the nearest name, or with the expression of the generated field.
    """
    known = columns_of(model)
    for name in names:
        if name in known and known[name].generated:
            raise RegistrationError(_why_generated(model, known[name]))
    missing = [name for name in names if name not in known]
    if len(names) - len(missing) < required:
        name = missing[0]
        raise RegistrationError(f"{model._meta.label} has no column {name!r}{suggestion(name, known)}")


def _why_generated(model: type[Model], field: Any) -> str:
    return (
        f"{model._meta.label}.{field.name} is computed by the database, so a save does not know its new "
        f"value; name the fields of its expression {field.expression!r}"
    )

"""Model instances: as references that are fetched together, or as snapshots of their fields."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Model
from django.db.models.fields.files import FieldFile

Reference = tuple[type[Model], str, Any]  # model, database, primary key
Fetched = dict[Reference, Model]


def reference(instance: Model, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the model, primary key and database of an instance."""
    return {
        "model": instance._meta.label,
        "pk": encode(_clean_pk(type(instance), instance.pk)),
        "database": instance._state.db or DEFAULT_DB_ALIAS,
    }


def snapshot(instance: Model, encode: Callable[[Any, Any, Model], Any]) -> dict[str, Any]:
    """Return the current field values of an instance, with its parents' and without its deferred fields."""
    values = vars(instance)
    fields = [field for field in instance._meta.concrete_fields if field.attname in values]
    return {
        "model": instance._meta.label,
        "database": instance._state.db,
        "adding": instance._state.adding,
        "fields": {field.attname: encode(field, _plain(values[field.attname]), instance) for field in fields},
    }


def restore(data: Mapping[str, Any], decode: Callable[[Any, Any], Any]) -> Model:
    """Return the instance of a snapshot, without fields that the model no longer has."""
    model = _model(data["model"])
    stored = data["fields"]
    fields = [field for field in model._meta.concrete_fields if field.attname in stored]
    values = [decode(field, stored[field.attname]) for field in fields]
    instance = model.from_db(data["database"], [field.attname for field in fields], values)
    instance._state.adding = data["adding"]
    return instance


def reference_of(data: Mapping[str, Any], decode: Callable[[Any], Any]) -> Reference:
    """Return the key of the instance in the result of `fetch()`.

    Raises:
        LookupError: for a model or a database that this process does not have.
    """
    if data["database"] not in connections:
        raise LookupError(f"database {data['database']!r} is not configured here")
    model = _model(data["model"])
    return model, data["database"], _clean_pk(model, decode(data["pk"]))


def fetch(references: Iterable[Reference]) -> Fetched:
    """Fetch all instances that exist, with one query for each model and database."""
    groups: defaultdict[tuple[type[Model], str], set[Any]] = defaultdict(set)
    for model, database, pk in references:
        groups[model, database].add(pk)
    return {
        (model, database, pk): instance
        for (model, database), pks in groups.items()
        for pk, instance in model._base_manager.using(database).in_bulk(pks).items()
    }


def _model(label: str) -> type[Model]:
    return apps.get_model(label)


def _clean_pk(model: type[Model], pk: Any) -> Any:
    # `Order(pk="7")` is legal, but the fetched instance has the key 7.
    fields = model._meta.pk_fields
    try:
        if len(fields) == 1:
            return fields[0].to_python(pk)
        return tuple(field.to_python(part) for field, part in zip(fields, pk, strict=True))
    except ValidationError:
        return pk


def _plain(value: Any) -> Any:
    # The field wraps the name again when the snapshot is restored.
    return value.name if isinstance(value, FieldFile) else value

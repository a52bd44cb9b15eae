"""Which models are tracked, and what each of their saves changes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db.models import Field, Model
from django.db.models.signals import class_prepared, post_init, post_save, pre_save
from django.db.models.utils import make_model_tuple

from outbox.conditions.base import ModelRef
from outbox.conditions.snapshots import (
    UNKNOWN,
    Layer,
    TrackedState,
    Values,
    capture,
    install,
    row_of,
    tracked_fields,
)
from outbox.errors import RegistrationError, suggestion

# A base (None: every model) and the fields that are wanted of it and of all that derives from it.
_wanted: list[tuple[type[Model] | None, tuple[str, ...]]] = []
# Records of saves that failed stay until newer ones push them out.
_MAX_SAVES = 8


class Save:
    """One save of one instance: what the row held before, and holds now."""

    def __init__(self, update_fields: frozenset[str] | None, before: Values | None) -> None:
        self.update_fields = update_fields
        self.before = before
        self.now: Values | None = None
        self.dispatch: weakref.ref[Dispatch] | None = None

    @property
    def current(self) -> bool:
        """Return whether its signals may still be under way."""
        return self.dispatch is None or self.dispatch() is not None


class Dispatch:
    """Lives as long as one sending of post_save, whose list of responses alone holds it."""


# ---------------------------------------------------------------- which models


def track(models: Iterable[ModelRef] | None, names: tuple[str, ...]) -> None:
    """Keep the old values of these fields, for these models and all that derives from them.

    Args:
        models: None for every model that has at least one of the fields.

    Raises:
        RegistrationError: if the one model lacks a field, or one of several has none of them; for a label,
            once its model is loaded.
    """
    bases: list[ModelRef | None] = [None] if models is None else [*models]
    enough = len(names) if len(bases) == 1 else 1
    for base in bases:
        if isinstance(base, str):
            apps.lazy_model_operation(lambda found: _want(found, names, enough), make_model_tuple(base))
        else:
            _want(base, names, enough)


def _want(base: type[Model] | None, names: tuple[str, ...], enough: int) -> None:
    if base is not None:
        _check_names(base, names, enough)
    if (base, names) in _wanted:
        return
    _wanted.append((base, names))
    for model in _derived(base or Model):
        _add(model, names)


def _check_names(model: type[Model], names: tuple[str, ...], enough: int) -> None:
    known = _columns(model)
    lacking = [name for name in names if name not in known]
    if len(names) - len(lacking) < enough:
        name = lacking[0]
        raise RegistrationError(f"{model._meta.label} has no column {name!r}{suggestion(name, known)}")


def _derived(base: type[Model]) -> Iterator[type[Model]]:
    if base is not Model:
        yield base
    for model in base.__subclasses__():
        yield from _derived(model)


def _add(model: type[Model], names: tuple[str, ...]) -> None:
    columns = _columns(model)
    fields = {columns[name].attname: columns[name] for name in names if name in columns}
    if not fields or model._meta.abstract:
        return
    if model not in tracked_fields:
        for signal, receiver in (
            (post_init, _after_init),
            (pre_save, _before_save),
            (post_save, _after_save),
        ):
            signal.connect(receiver, sender=model, weak=False, dispatch_uid="outbox.tracking")
    tracked_fields.setdefault(model, {}).update(fields)


def _columns(model: type[Model]) -> dict[str, Field[Any, Any]]:
    fields = model._meta.concrete_fields
    return {field.attname: field for field in fields} | {field.name: field for field in fields}


# For saves alone: a class that is only being prepared may still gain fields.
_columns_for_good = cache(_columns)


def _on_class_prepared(sender: type[Model], **kwargs: Any) -> None:
    for base, names in _wanted:
        if base is None or issubclass(sender, base):
            _add(sender, names)


class_prepared.connect(_on_class_prepared, weak=False, dispatch_uid="outbox.tracking")


# ---------------------------------------------------------------- the signals of a tracked model


def _after_init(instance: Model, **kwargs: Any) -> None:
    install(instance)


def _before_save(instance: Model, using: str, update_fields: frozenset[str] | None, **kwargs: Any) -> None:
    state = install(instance)
    if not state.layers and not state.adding:
        # It was loaded before its model was tracked; what the save leaves out stays unknown.
        state.layers = (Layer({}, None),)
    saves = [save for save in state.saves if save.current][1 - _MAX_SAVES :]
    state.saves = (*saves, Save(update_fields, _before(instance, using)))


def _after_save(instance: Model, **arguments: Any) -> Dispatch:
    save = _finish(instance, arguments)
    dispatch = Dispatch()
    save.dispatch = weakref.ref(dispatch)
    return dispatch


def _finish(instance: Model, arguments: Mapping[str, Any]) -> Save:
    """Return the save that sends post_save now, having moved the snapshot to what it wrote."""
    state = install(instance)
    save = _current(state, arguments.get("update_fields"))
    if save is None:
        save = Save(arguments.get("update_fields"), {})
        state.saves = (*state.saves, save)
    if save.now is None:
        created = bool(arguments.get("created"))
        save.now = _written(instance, arguments)
        if created:
            save.before = None
        elif save.before is None:
            save.before = {}  # it was not new after all, but never read
        state.write(row_of(instance), save.now, created=created, using=arguments.get("using"))
    return save


def _current(state: TrackedState, update_fields: Any) -> Save | None:
    # A receiver of post_save may save again. That save is over, and its Dispatch gone, when the outer one
    # goes on; of the others, the very object that was passed as update_fields tells which is meant.
    current: list[Save] = [save for save in reversed(state.saves) if save.current]
    same = (save for save in current if save.update_fields is update_fields)
    return next(same, current[0] if current else None)


def _written(instance: Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tracked values that a save writes, or wrote."""
    fields = tracked_fields.get(type(instance), {})
    names = arguments.get("update_fields")
    values = capture(instance)
    if names is not None:
        written = [key for key in values if key in names or fields[key].name in names]
        values = {key: values[key] for key in written}
    if arguments.get("raw"):
        # A fixture's parents are saved as rows of their own.
        own = instance._meta.concrete_model or type(instance)
        local = own._meta.local_concrete_fields
        values = {name: value for name, value in values.items() if fields[name] in local}
    return {name: _as_column(fields[name], value) for name, value in values.items()}


def _as_column(field: Field[Any, Any], value: Any) -> Any:
    # Decimal("5.00") and the "5.00" of a form are the same to the database.
    try:
        return value if value is UNKNOWN else field.to_python(value)
    except (ValidationError, TypeError):
        return value


def _before(instance: Model, using: str | None) -> Values | None:
    """Return what the row is known to hold, or None if there is no row."""
    state = instance._state
    known = state.known() if isinstance(state, TrackedState) else {}
    if instance.pk is None or known is None or (state.adding and not known):
        return None
    elsewhere = using is not None and state.db not in (None, using)
    if isinstance(state, TrackedState) and (elsewhere or state.row != row_of(instance)):
        return {}
    return known


# ---------------------------------------------------------------- what changed


def changes(
    instance: Model, names: tuple[str, ...], arguments: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the named fields that a save changes, or has changed, with their old and new values."""
    if "created" in arguments:
        save = _finish(instance, arguments)
        before, now = save.before, save.now or {}
    else:
        # Nothing of this save is written yet, so no record of it is needed.
        before, now = _before(instance, arguments.get("using")), _written(instance, arguments)
    columns = _columns_for_good(type(instance))
    found = {name: columns[name] for name in names if name in columns and columns[name].attname in now}
    pairs = {name: (_old(before, field), now[field.attname]) for name, field in found.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] or UNKNOWN in pair}


def _old(before: Values | None, field: Field[Any, Any]) -> Any:
    return None if before is None else before.get(field.attname, UNKNOWN)

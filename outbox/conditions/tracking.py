"""The models whose old values are tracked, and the changes that each of their saves makes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Field, Model
from django.db.models.signals import class_prepared, post_init, post_save, pre_save

from .base import ModelRef
from .columns import cached_columns_of, check_names, columns_of
from .lazy import when_loaded
from .snapshots import (
    UNKNOWN,
    Layer,
    TrackedState,
    Values,
    current_values,
    row_of,
    tracked_fields,
    tracked_state,
)

# Each base model (None: every model) with the fields to track in it and in its subclasses.
_tracked_bases: list[tuple[type[Model] | None, tuple[str, ...]]] = []
# Records of failed saves are not removed; newer records replace them.
_MAX_SAVES = 8


class Save:
    """One save of one instance: the values of its row before and after."""

    def __init__(self, update_fields: frozenset[str] | None, old_values: Values | None) -> None:
        self.update_fields = update_fields
        self.old_values = old_values
        self.new_values: Values | None = None
        self.response: weakref.ref[PostSaveResponse] | None = None

    @property
    def in_progress(self) -> bool:
        """Return whether the signals of the save may still be running."""
        return self.response is None or self.response() is not None


class PostSaveResponse:
    """A response of post_save that lives while its receivers run: only the list of responses holds it."""


# ---------------------------------------------------------------- tracked models


def track(models: Iterable[ModelRef] | None, names: tuple[str, ...]) -> None:
    """Keep the old values of fields, for these models and their subclasses.

    Args:
        models: None for every model that has at least one of the fields.

    Raises:
        RegistrationError: if the only model lacks a field, or one of several models has none of the fields.
            For a label, the error is raised when its model is loaded.
    """
    bases: list[ModelRef | None] = [None] if models is None else [*models]
    required = len(names) if len(bases) == 1 else 1
    for base in bases:
        if isinstance(base, str):
            owner = f"only_when_field_changed({', '.join(map(repr, names))})"
            when_loaded(base, lambda found: _track_base(found, names, required), owner=owner)
        else:
            _track_base(base, names, required)


def _track_base(base: type[Model] | None, names: tuple[str, ...], required: int) -> None:
    if base is not None:
        check_names(base, names, required)
    if (base, names) in _tracked_bases:
        return
    _tracked_bases.append((base, names))
    for model in _with_subclasses(base or Model):
        _track_model(model, names)


def _with_subclasses(base: type[Model]) -> Iterator[type[Model]]:
    if base is not Model:
        yield base
    for model in base.__subclasses__():
        yield from _with_subclasses(model)


def _track_model(model: type[Model], names: tuple[str, ...]) -> None:
    columns = columns_of(model)
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


def _on_class_prepared(sender: type[Model], **kwargs: Any) -> None:
    for base, names in _tracked_bases:
        if base is None or issubclass(sender, base):
            _track_model(sender, names)


class_prepared.connect(_on_class_prepared, weak=False, dispatch_uid="outbox.tracking")


# ---------------------------------------------------------------- the signals of a tracked model


def _after_init(instance: Model, **kwargs: Any) -> None:
    tracked_state(instance)


def _before_save(instance: Model, using: str, update_fields: frozenset[str] | None, **kwargs: Any) -> None:
    state = tracked_state(instance)
    if not state.layers and not state.adding:
        # The instance was loaded before its model was tracked. Fields that the save omits stay unknown.
        state.layers = (Layer({}, None),)
    saves = [save for save in state.saves if save.in_progress][1 - _MAX_SAVES :]
    state.saves = (*saves, Save(update_fields, _old_values(instance, using)))


def _after_save(instance: Model, **arguments: Any) -> PostSaveResponse:
    save = _finished_save(instance, arguments)
    response = PostSaveResponse()
    save.response = weakref.ref(response)
    return response


def _finished_save(instance: Model, arguments: Mapping[str, Any]) -> Save:
    """Return the save that sends post_save; record its values when it is asked for the first time."""
    state = tracked_state(instance)
    save = _save_in_progress(state, arguments.get("update_fields"))
    if save is None:
        save = Save(arguments.get("update_fields"), {})
        state.saves = (*state.saves, save)
    if save.new_values is None:
        created = bool(arguments.get("created"))
        save.new_values = _new_values(instance, arguments)
        if created:
            save.old_values = None
        elif save.old_values is None:
            # The row existed, but this instance never read it.
            save.old_values = {}
        state.record_save(row_of(instance), save.new_values, created=created, using=arguments.get("using"))
    return save


def _save_in_progress(state: TrackedState, update_fields: Any) -> Save | None:
    # A receiver of post_save can save again. When the outer save continues, the inner save has ended and its
    # response is freed. Among the remaining saves, the object passed as update_fields identifies the save.
    newest_first: list[Save] = [save for save in reversed(state.saves) if save.in_progress]
    same = (save for save in newest_first if save.update_fields is update_fields)
    return next(same, newest_first[0] if newest_first else None)


def _new_values(instance: Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tracked values that a save writes."""
    fields = tracked_fields.get(type(instance), {})
    names = arguments.get("update_fields")
    values = current_values(instance)
    if names is not None:
        written = [key for key in values if key in names or fields[key].name in names]
        values = {key: values[key] for key in written}
    if arguments.get("raw"):
        # A fixture saves the rows of parent models separately.
        own = instance._meta.concrete_model or type(instance)
        local = own._meta.local_concrete_fields
        values = {name: value for name, value in values.items() if fields[name] in local}
    found = {name: _as_column(fields[name], value) for name, value in values.items()}
    return found | {name: UNKNOWN for name, field in fields.items() if field.generated}


def _as_column(field: Field[Any, Any], value: Any) -> Any:
    # The database stores Decimal("5.00") and the form value "5.00" as the same value.
    try:
        return value if value is UNKNOWN else field.to_python(value)
    except (ValidationError, TypeError):
        return value


def _old_values(instance: Model, using: str | None) -> Values | None:
    """Return the known values of the row, or None if there is no row."""
    state = instance._state
    known = state.known_values() if isinstance(state, TrackedState) else {}
    if instance.pk is None or known is None or (state.adding and not known):
        return None
    elsewhere = using is not None and state.db not in (None, using)
    if isinstance(state, TrackedState) and (elsewhere or state.row != row_of(instance)):
        return {}
    return known


# ---------------------------------------------------------------- changes


def changes(
    instance: Model, names: tuple[str, ...], arguments: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the named fields that a save changes or has changed, with their old and new values."""
    if "created" in arguments:
        save = _finished_save(instance, arguments)
        old_values, new_values = save.old_values, save.new_values or {}
    else:
        # pre_save: the save has written nothing yet, so its record is not needed.
        old_values = _old_values(instance, arguments.get("using"))
        new_values = _new_values(instance, arguments)
    columns = cached_columns_of(type(instance))
    written = {
        name: columns[name] for name in names if name in columns and columns[name].attname in new_values
    }
    pairs = {
        name: (_old_value(old_values, field), new_values[field.attname]) for name, field in written.items()
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] or UNKNOWN in pair}


def _old_value(old_values: Values | None, field: Field[Any, Any]) -> Any:
    return None if old_values is None else old_values.get(field.attname, UNKNOWN)

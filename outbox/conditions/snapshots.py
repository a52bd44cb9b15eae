"""What an instance last saw of its row, kept on its `_state`, through refreshes, saves and rollbacks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from copy import deepcopy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import count
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Field, Model
from django.db.models.base import ModelState
from django.db.models.fields.files import FieldFile

from outbox.conditions.transactions import Outcome, current_outcome

Values = Mapping[str, Any]


class Unknown(Enum):
    """The type of `UNKNOWN`; an Enum, so that it travels to workers as itself."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN

# Field by attname, for the models that are tracked.
tracked_fields: dict[type[Model], dict[str, Field[Any, Any]]] = {}

_IMMUTABLE = frozenset(
    {NoneType, bool, int, float, str, bytes, Decimal, UUID, date, datetime, time, timedelta}
)
_clock = count(1)
_reads = threading.local()


class Layer(NamedTuple):
    """Values of the row, as far as `outcome` allows; values of None say that there is no row."""

    values: Values | None
    outcome: Outcome | None


class TrackedState(ModelState):
    """A model instance's state that notices when the instance is read from the database.

    Django sends no signal for `refresh_from_db()`, nor for the loading of a deferred field. Both copy from a
    second instance and end with `self._state.db = other._state.db`: who was read tells where they come from.
    """

    layers: tuple[Layer, ...] = ()
    saves: tuple[Any, ...] = ()
    owner: weakref.ref[Model] | None = None
    row: Any = None
    seen = 0

    @property
    def db(self) -> str | None:
        """Return the alias, and remember who was asked."""
        _reads.last = weakref.ref(self)
        return self.__dict__.get("db")

    @db.setter
    def db(self, alias: str | None) -> None:
        self.__dict__["db"] = alias
        owner = self.owner() if self.owner and not self.layers and not self.adding else None
        if owner is not None:
            # It was loaded, or inserted in bulk, this very moment.
            self.row = row_of(owner)
            self.layers = (Layer(capture(owner), None),)
            return
        source: TrackedState | None = _last_read()
        if source is not None and source.seen > self.seen and source.row == self._own_row():
            self._copy_from(source, alias)

    def __getstate__(self) -> dict[str, Any]:
        known = self.known()
        layers = () if known == {} else (Layer(known, None),)
        passing = (
            "owner",
            "saves",
            "peers",
        )  # Django keeps peers as weak references, which cannot be pickled
        state = {name: value for name, value in self.__dict__.items() if name not in passing}
        return {**state, "layers": layers}

    def __copy__(self) -> TrackedState:
        copied = TrackedState.__new__(TrackedState)
        copied.__dict__.update(self.__dict__, owner=None, saves=(), fields_cache=dict(self.fields_cache))
        return copied

    def known(self) -> Values | None:
        """Return what the row holds as far as is known, or None if there is none."""
        live = self._live()
        return live[-1].values if live else {}

    def write(self, row: Any, values: Values, *, created: bool, using: str | None) -> None:
        """Take in what a save has written."""
        self.row, self.seen = row, next(_clock)
        live = self._live() or (Layer(None if created else {}, None),)
        if created and live[-1].values is not None:
            live = (Layer(None, None),)
        self.layers = _stacked(live, {**(live[-1].values or {}), **values}, using)

    def _copy_from(self, source: TrackedState, alias: str | None) -> None:
        self.row, self.seen = source.row, source.seen
        found = source.known() or {}
        # A field that was never seen before is taken to have been the same before this transaction.
        below = tuple(
            Layer(None if layer.values is None else {**found, **layer.values}, layer.outcome)
            for layer in self._live()
        )
        if not below:
            self.layers = (Layer(found, None),)
        else:
            self.layers = _stacked(below, {**(below[-1].values or {}), **found}, alias)

    def _own_row(self) -> Any:
        owner = self.owner() if self.owner else None
        return self.row if owner is None else row_of(owner)

    def _live(self) -> tuple[Layer, ...]:
        """Return the layers that were not rolled back, from the last settled one on."""
        live: list[Layer] = []
        for layer in self.layers:
            if layer.outcome is None or layer.outcome.committed:
                live = [Layer(layer.values, None)]
            elif not layer.outcome.undone:
                live.append(layer)
        return tuple(live)


def _last_read() -> TrackedState | None:
    reference: weakref.ref[TrackedState] | None = getattr(_reads, "last", None)
    return reference() if reference else None


def install(instance: Model) -> TrackedState:
    """Return the tracked state of an instance, which starts without knowing anything."""
    state: Any = instance._state
    if not isinstance(state, TrackedState):
        state.__class__ = TrackedState
        state.owner = weakref.ref(instance)
        state.seen = next(_clock)
    tracked: TrackedState = state
    return tracked


def row_of(instance: Model) -> tuple[type[Model] | None, Any]:
    """Return what tells one row from all others of its database."""
    return instance._meta.concrete_model, instance.pk


def capture(instance: Model) -> dict[str, Any]:
    """Return the tracked values of an instance, leaving out deferred ones."""
    held, names = vars(instance), tracked_fields.get(type(instance), ())
    return {
        name: value if type(value := held[name]) in _IMMUTABLE else _frozen(value)
        for name in names
        if name in held
    }


def _frozen(value: Any) -> Any:
    """Return a value that will not change with the instance."""
    if isinstance(value, FieldFile):
        return value.name
    return UNKNOWN if hasattr(value, "resolve_expression") else deepcopy(value)


def _stacked(live: tuple[Layer, ...], values: Values, using: str | None) -> tuple[Layer, ...]:
    if live[-1].values == values:
        return live
    outcome = current_outcome(using)
    if outcome is None:
        return (Layer(values, None),)
    # Layers of one outcome stand and fall together.
    kept = live[:-1] if live[-1].outcome is outcome else live
    return (*kept, Layer(values, outcome))

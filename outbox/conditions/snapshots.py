"""Database values of a model instance, kept on its `_state` and updated by reads, saves and rollbacks."""

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

from .transactions import AtomicBlock, current_atomic_block

Values = Mapping[str, Any]


class Unknown(Enum):
    """The type of `UNKNOWN`; an Enum, so that a worker decodes the same object."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN

# The tracked fields of each model, by attname.
tracked_fields: dict[type[Model], dict[str, Field[Any, Any]]] = {}

_IMMUTABLE = frozenset(
    {NoneType, bool, int, float, str, bytes, Decimal, UUID, date, datetime, time, timedelta}
)
# Django keeps peers as weak references, which cannot be pickled.
_NOT_PICKLED = ("instance", "saves", "peers")
_versions = count(1)
_reads = threading.local()


class Layer(NamedTuple):
    """Values of a row that hold unless `block` is rolled back; `values` is None if there is no row."""

    values: Values | None
    block: AtomicBlock | None


class TrackedState(ModelState):
    """A model instance's state that notices when the instance is read from the database.

    Django sends no signal for `refresh_from_db()` or for the loading of a deferred field. Both copy values
    from a second instance and end with `self._state.db = other._state.db`. The state whose `db` was read last
    is therefore the source of the values.

    Attributes:
        layers: the known values, one layer for each atomic block that wrote other values; outermost first.
        saves: records of the saves in progress.
        row: the row that the layers describe.
        version: the number of the last read or save, in the order of all reads and saves of this process.
    """

    layers: tuple[Layer, ...] = ()
    saves: tuple[Any, ...] = ()
    instance: weakref.ref[Model] | None = None
    row: Any = None
    version = 0

    @property
    def db(self) -> str | None:
        """Return the alias, and remember this state as the last one that was asked."""
        _reads.last = weakref.ref(self)
        return self.__dict__.get("db")

    @db.setter
    def db(self, alias: str | None) -> None:
        self.__dict__["db"] = alias
        instance = self.instance() if self.instance and not self.layers and not self.adding else None
        if instance is not None:
            # Django has just loaded the instance, or inserted it with bulk_create().
            self.row = row_of(instance)
            self.layers = (Layer(current_values(instance), None),)
            return
        source: TrackedState | None = _last_read()
        if source is not None and source.version > self.version and source.row == self._instance_row():
            self._copy_from(source, alias)

    @property
    def fetch_mode(self) -> Any:
        """Return Django 6.1's fetch mode, or one that records the values it fetches for several instances."""
        mode = self.__dict__.get("fetch_mode")
        if mode is None:
            # Django's attribute sets the default. Versions without the attribute never ask for it.
            mode = super().fetch_mode
        return PeerFetch(mode) if mode.track_peers else mode

    @fetch_mode.setter
    def fetch_mode(self, mode: Any) -> None:
        self.__dict__["fetch_mode"] = mode.mode if isinstance(mode, PeerFetch) else mode

    @fetch_mode.deleter
    def fetch_mode(self) -> None:
        del self.__dict__["fetch_mode"]

    def __getstate__(self) -> dict[str, Any]:
        known = self.known_values()
        layers = () if known == {} else (Layer(known, None),)
        state = {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}
        return {**state, "layers": layers}

    def __copy__(self) -> TrackedState:
        copied = TrackedState.__new__(TrackedState)
        copied.__dict__.update(self.__dict__, instance=None, saves=(), fields_cache=dict(self.fields_cache))
        return copied

    def known_values(self) -> Values | None:
        """Return the known values of the row, or None if there is no row."""
        layers = self._valid_layers()
        return layers[-1].values if layers else {}

    def record_save(self, row: Any, values: Values, *, created: bool, using: str | None) -> None:
        """Add the values that a save has written."""
        self.row, self.version = row, next(_versions)
        layers = self._valid_layers() or (Layer(None if created else {}, None),)
        if created and layers[-1].values is not None:
            layers = (Layer(None, None),)
        self.layers = _with_values(layers, {**(layers[-1].values or {}), **values}, using)

    def _copy_from(self, source: TrackedState, alias: str | None) -> None:
        self.row, self.version = source.row, source.version
        self.record_read(source.known_values() or {}, alias)

    def record_read(self, read: Values, alias: str | None) -> None:
        """Add values that were read from the row."""
        # The outer layers assume that a field read for the first time had the same value before.
        layers = tuple(
            Layer(None if layer.values is None else {**read, **layer.values}, layer.block)
            for layer in self._valid_layers()
        )
        if not layers:
            self.layers = (Layer(read, None),)
        else:
            self.layers = _with_values(layers, {**(layers[-1].values or {}), **read}, alias)

    def _instance_row(self) -> Any:
        instance = self.instance() if self.instance else None
        return self.row if instance is None else row_of(instance)

    def _valid_layers(self) -> tuple[Layer, ...]:
        """Return the last committed layer and the open layers above it, one for each block."""
        valid: list[Layer] = []
        for layer in self.layers:
            if layer.block is None or layer.block.committed:
                valid = [Layer(layer.values, None)]
            elif not layer.block.rolled_back:
                block = layer.block.without_released()
                if valid and valid[-1].block == block:
                    valid.pop()
                valid.append(Layer(layer.values, block))
        return tuple(valid)


class PeerFetch:
    """Django's fetch mode `FETCH_PEERS`, for tracked instances.

    It sets a deferred field of many instances from one query, without the assignment to `_state.db` that
    marks a read. Otherwise each fetched value would look like an assigned one.
    """

    track_peers = True

    def __init__(self, mode: Any) -> None:
        self.mode = mode

    def __reduce__(self) -> tuple[Any, ...]:
        return PeerFetch, (self.mode,)

    def fetch(self, fetcher: Any, instance: Model) -> None:
        """Fetch as Django does, and record the values of the fields that were missing before."""
        found = (peer() for peer in getattr(instance._state, "peers", ()))
        missing = [(peer, _missing_names(peer)) for peer in found if peer is not None]
        self.mode.fetch(fetcher, instance)
        for peer, names in missing:
            state = peer._state
            values = {name: value for name, value in current_values(peer).items() if name in names}
            if values and isinstance(state, TrackedState) and state.layers:
                state.record_read(values, state.db)


def _missing_names(instance: Model) -> frozenset[str]:
    return frozenset(tracked_fields.get(type(instance), ())) - vars(instance).keys()


def _last_read() -> TrackedState | None:
    reference: weakref.ref[TrackedState] | None = getattr(_reads, "last", None)
    return reference() if reference else None


def _with_values(layers: tuple[Layer, ...], values: Values, using: str | None) -> tuple[Layer, ...]:
    if layers[-1].values == values:
        return layers
    block = current_atomic_block(using)
    if block is None:
        return (Layer(values, None),)
    # One atomic block has one layer, because its writes are rolled back together.
    outer = layers[:-1] if layers[-1].block == block else layers
    return (*outer, Layer(values, block))


def tracked_state(instance: Model) -> TrackedState:
    """Return the tracked state of an instance; a new state knows no values."""
    state: Any = instance._state
    if not isinstance(state, TrackedState):
        state.__class__ = TrackedState
        state.instance = weakref.ref(instance)
        state.version = next(_versions)
    tracked: TrackedState = state
    return tracked


def row_of(instance: Model) -> tuple[type[Model] | None, Any]:
    """Return the identity of an instance's row within its database."""
    return instance._meta.concrete_model, instance.pk


def current_values(instance: Model) -> dict[str, Any]:
    """Return the values of the tracked fields of an instance, without deferred fields."""
    attributes, names = vars(instance), tracked_fields.get(type(instance), ())
    return {
        name: value if type(value := attributes[name]) in _IMMUTABLE else _immutable(value)
        for name in names
        if name in attributes
    }


def _immutable(value: Any) -> Any:
    """Return a copy that does not change with the instance."""
    if isinstance(value, FieldFile):
        return value.name
    return UNKNOWN if hasattr(value, "resolve_expression") else deepcopy(value)

"""Querysets and managers whose bulk operations send signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from django.db import connections, models, transaction

from .bulk import CHUNK_SIZE, BulkSignal, bulk_created, bulk_deleted, bulk_updated

M = TypeVar("M", bound=models.Model)


class BulkSignalQuerySet(models.QuerySet[M]):
    """A queryset whose bulk operations send `bulk_created`, `bulk_updated` and `bulk_deleted`.

    The operation and its events share a transaction. A signal without receivers adds no queries to Django's.
    As a mixin, it stands before the other queryset: `class Mine(BulkSignalQuerySet, Theirs)`.
    """

    # The maximum number of instances in one event.
    signal_chunk_size: int = CHUNK_SIZE

    _muted = False

    def in_signal_chunks(self, size: int) -> BulkSignalQuerySet[M]:
        """Return a queryset whose events have at most `size` instances.

        Raises:
            ValueError: if the size is not positive.
        """
        if size < 1:
            raise ValueError(f"the size {size!r} of a chunk is not positive; give 1 or more")
        clone = self.all()
        clone.signal_chunk_size = size
        return clone

    def bulk_create(
        self,
        objs: Iterable[M],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[M]:
        """Insert instances as Django does, and send `bulk_created`."""
        conflicts = {"ignore_conflicts": ignore_conflicts, "update_conflicts": update_conflicts}
        create = partial(
            super().bulk_create,
            objs,
            batch_size,
            update_fields=update_fields,
            unique_fields=unique_fields,
            **conflicts,
        )
        if not self._has_listeners(bulk_created):
            return create()
        with self._atomic():
            created = create()
            self._send(bulk_created, list(created), **conflicts)
        return created

    def bulk_update(self, objs: Iterable[M], fields: Iterable[str], batch_size: int | None = None) -> int:
        """Update the fields of instances as Django does, and send `bulk_updated`."""
        if not self._has_listeners(bulk_updated):
            return super().bulk_update(objs, fields, batch_size)
        objs, fields = list(objs), list(fields)
        with self._atomic():
            # Django calls update(), which must not send the signal a second time.
            updated = self._without_signals().bulk_update(objs, fields, batch_size)
            self._send(bulk_updated, self._existing(objs, updated), fields=frozenset(fields))
        return updated

    def update(self, **kwargs: Any) -> int:
        """Update the rows as Django does, and send `bulk_updated`.

        If the signal has receivers, the rows are locked first, so that it has exactly the updated rows.
        """
        if self._is_refused() or not self._has_listeners(bulk_updated):
            return super().update(**kwargs)
        with self._atomic():
            pks = self._lock(keep_keys=not self._writes_keys(kwargs))
            updated = sum(
                self._without_signals().filter(pk__in=part).update(**kwargs) for part in self._key_chunks(pks)
            )
            rows = self._fetch(pks) if bulk_updated.needs_instances(self.model) else self._references(pks)
            self._send(bulk_updated, rows, fields=frozenset(kwargs))
        self._result_cache = None
        return updated

    update.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows as Django does, and send `bulk_deleted` with the values before the delete."""
        if self._is_refused() or self._returns_values() or not self._has_listeners(bulk_deleted):
            return super().delete()
        counts: Counter[str] = Counter()
        with self._atomic():
            pks = self._lock()
            rows = self._fetch(pks)
            for part in self._key_chunks(pks):
                _, deleted = self._without_signals().filter(pk__in=part).delete()
                # `+=` would drop models with a count of 0, which Django reports.
                counts.update(deleted)
            self._send(bulk_deleted, rows)
        self._result_cache = None
        return counts.total(), dict(counts)

    delete.alters_data = True  # type: ignore[attr-defined]
    # As in Django, the manager has no delete(), so that deleting all rows needs an explicit `all()`.
    delete.queryset_only = True  # type: ignore[attr-defined]

    def _has_listeners(self, signal: BulkSignal) -> bool:
        return not self._muted and signal.has_listeners(self.model)

    def _is_refused(self) -> bool:
        # Django refuses these operations with its own error messages.
        return bool(self.query.is_sliced or self.query.combinator or self.query.distinct_fields)

    def _returns_values(self) -> bool:
        return self._fields is not None  # type: ignore[attr-defined]  # not in the stubs

    def _atomic(self) -> AbstractContextManager[None]:
        self._for_write = True
        return transaction.atomic(using=self.db, savepoint=False)

    def _without_signals(self) -> BulkSignalQuerySet[M]:
        clone = self._clone()
        clone._muted = True
        return clone

    def _clone(self) -> BulkSignalQuerySet[M]:
        clone: BulkSignalQuerySet[M] = super()._clone()  # type: ignore[misc]  # not in the stubs
        clone.signal_chunk_size = self.signal_chunk_size
        clone._muted = self._muted
        return clone

    def _lock(self, *, keep_keys: bool = False) -> list[Any]:
        """Lock the rows in the order of their keys, and return the keys of the rows that match.

        Args:
            keep_keys: lock as an UPDATE of other fields does, so that other transactions can still insert
                foreign keys to the rows. A stronger lock than the lock of the statement can cause a deadlock.
        """
        no_key = keep_keys and connections[self.db].features.has_select_for_no_key_update
        if self._is_simple():
            # PostgreSQL waits for each row and then checks again whether it matches.
            return list(self.order_by("pk").select_for_update(no_key=no_key).values_list("pk", flat=True))
        # PostgreSQL refuses to lock the rows of a query with GROUP BY, DISTINCT or an outer join. So the rows
        # are locked by their keys, and the query then runs again.
        matching = self._base().filter(pk__in=self.order_by().values("pk"))
        locked = list(matching.order_by("pk").select_for_update(no_key=no_key).values_list("pk", flat=True))
        again = self.order_by("pk").filter(pk__in=locked).values_list("pk", flat=True)
        return list(dict.fromkeys(again))

    def _writes_keys(self, names: Collection[str]) -> bool:
        """Return whether an update of these fields writes a key that other tables can refer to."""
        return "pk" in names or any(
            getattr(field, "unique", False)
            for field in self.model._meta.get_fields()
            if field.name in names or getattr(field, "attname", None) in names
        )

    def _is_simple(self) -> bool:
        query = self.query
        tables = sum(1 for count in query.alias_refcount.values() if count)
        return tables <= 1 and not (query.distinct or query.annotations or query.group_by is not None)

    def _base(self) -> models.QuerySet[M]:
        return self.model._base_manager.using(self.db)

    def _key_chunks(self, pks: list[Any]) -> Iterator[list[Any]]:
        # Half of the allowed parameters are left for the conditions of the query.
        size = (connections[self.db].features.max_query_params or len(pks) * 2) // 2
        for start in range(0, max(len(pks), 1), max(size, 1)):
            yield pks[start : start + size]

    def _fetch(self, pks: list[Any]) -> list[M]:
        found = self._base().in_bulk(pks)
        return [found[pk] for pk in pks if pk in found]

    def _references(self, pks: list[Any]) -> list[M]:
        """Return instances that have loaded only their keys."""
        names = [field.attname for field in self.model._meta.pk_fields]
        single = len(names) == 1
        return [self.model.from_db(self.db, names, [pk] if single else pk) for pk in pks]

    def _existing(self, objs: list[M], updated: int) -> list[M]:
        if updated == len(objs):
            return objs
        present = self._base().in_bulk([obj.pk for obj in objs])
        return [obj for obj in objs if obj.pk in present]

    def _send(self, signal: BulkSignal, instances: list[M], **arguments: Any) -> None:
        if instances:
            size = self.signal_chunk_size
            signal.send(self.model, instances=instances, using=self.db, chunk_size=size, **arguments)


class BulkSignalManager(models.Manager.from_queryset(BulkSignalQuerySet)):  # type: ignore[misc]  # made at run time
    """A manager of `BulkSignalQuerySet`; related managers of a model inherit from its class."""

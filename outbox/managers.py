"""Querysets and managers whose bulk operations send signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from django.db import connections, models, transaction

from .signals import CHUNK_SIZE, BulkSignal, bulk_created, bulk_deleted, bulk_updated

M = TypeVar("M", bound=models.Model)


class BulkSignalQuerySet(models.QuerySet[M]):
    """A queryset whose bulk operations send `bulk_created`, `bulk_updated` and `bulk_deleted`.

    The operation and its events share a transaction. Where nobody listens, Django does what it always does.
    To add it to a queryset of another kind, name it first: `class Mine(BulkSignalQuerySet, Theirs)`.
    """

    # How many instances one event carries at most.
    signal_chunk_size: int = CHUNK_SIZE

    _muted = False

    def in_signal_chunks(self, size: int) -> BulkSignalQuerySet[M]:
        """Return a queryset whose events carry at most so many instances.

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
        if not self._is_heard(bulk_created):
            return create()
        with self._atomic():
            created = create()
            self._send(bulk_created, list(created), **conflicts)
        return created

    def bulk_update(self, objs: Iterable[M], fields: Iterable[str], batch_size: int | None = None) -> int:
        """Update the fields of instances as Django does, and send `bulk_updated`."""
        if not self._is_heard(bulk_updated):
            return super().bulk_update(objs, fields, batch_size)
        objs, fields = list(objs), list(fields)
        with self._atomic():
            # Django updates by way of update(), which is not to send the signal once more.
            updated = self._quietly().bulk_update(objs, fields, batch_size)
            self._send(bulk_updated, self._present(objs, updated), fields=frozenset(fields))
        return updated

    def update(self, **kwargs: Any) -> int:
        """Update the rows as Django does, and send `bulk_updated`.

        If somebody listens, the rows are locked first, so that the signal tells of those that were updated.
        """
        if self._is_refused() or not self._is_heard(bulk_updated):
            return super().update(**kwargs)
        with self._atomic():
            pks = self._lock(keys_stay=not self._writes_keys(kwargs))
            updated = sum(self._quietly().filter(pk__in=part).update(**kwargs) for part in self._parts(pks))
            rows = self._read(pks) if bulk_updated.reads_instances(self.model) else self._references(pks)
            self._send(bulk_updated, rows, fields=frozenset(kwargs))
        self._result_cache = None
        return updated

    update.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows as Django does, and send `bulk_deleted` with the instances as they were."""
        if self._is_refused() or self._gives_values() or not self._is_heard(bulk_deleted):
            return super().delete()
        counts: Counter[str] = Counter()
        with self._atomic():
            pks = self._lock()
            rows = self._read(pks)
            for part in self._parts(pks):
                _, deleted = self._quietly().filter(pk__in=part).delete()
                # Not `+=`, which would drop the models of which none were deleted.
                counts.update(deleted)
            self._send(bulk_deleted, rows)
        self._result_cache = None
        return counts.total(), dict(counts)

    delete.alters_data = True  # type: ignore[attr-defined]
    # Keeps it off the manager, as Django does: deleting all rows must be asked for in so many words.
    delete.queryset_only = True  # type: ignore[attr-defined]

    def _is_heard(self, signal: BulkSignal) -> bool:
        return not self._muted and signal.has_listeners(self.model)

    def _is_refused(self) -> bool:
        # Django's own messages say why.
        return bool(self.query.is_sliced or self.query.combinator or self.query.distinct_fields)

    def _gives_values(self) -> bool:
        return self._fields is not None  # type: ignore[attr-defined]  # not in the stubs

    def _atomic(self) -> AbstractContextManager[None]:
        self._for_write = True
        return transaction.atomic(using=self.db, savepoint=False)

    def _quietly(self) -> BulkSignalQuerySet[M]:
        quiet = self._clone()
        quiet._muted = True
        return quiet

    def _clone(self) -> BulkSignalQuerySet[M]:
        clone: BulkSignalQuerySet[M] = super()._clone()  # type: ignore[misc]  # not in the stubs
        clone.signal_chunk_size = self.signal_chunk_size
        clone._muted = self._muted
        return clone

    def _lock(self, *, keys_stay: bool = False) -> list[Any]:
        """Lock the rows in the order of their keys, and return the keys of those that match.

        Args:
            keys_stay: lock as an UPDATE of other fields does, which lets foreign keys point at the rows
                meanwhile; a stronger lock than the statement's own could end in a deadlock.
        """
        no_key = keys_stay and connections[self.db].features.has_select_for_no_key_update
        if self._is_simple():
            # PostgreSQL waits for each row and looks once more whether it still matches.
            return list(self.order_by("pk").select_for_update(no_key=no_key).values_list("pk", flat=True))
        # It refuses to lock what is grouped, distinct or the optional side of a join; so the rows are locked
        # by their keys, and the query looks once more.
        matching = self._base().filter(pk__in=self.order_by().values("pk"))
        locked = list(matching.order_by("pk").select_for_update(no_key=no_key).values_list("pk", flat=True))
        again = self.order_by("pk").filter(pk__in=locked).values_list("pk", flat=True)
        return list(dict.fromkeys(again))

    def _writes_keys(self, names: Collection[str]) -> bool:
        """Say whether an update of these fields writes a key that other tables may refer to."""
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

    def _parts(self, pks: list[Any]) -> Iterator[list[Any]]:
        # The query may have parameters of its own beside the keys.
        size = (connections[self.db].features.max_query_params or len(pks) * 2) // 2
        for start in range(0, max(len(pks), 1), max(size, 1)):
            yield pks[start : start + size]

    def _read(self, pks: list[Any]) -> list[M]:
        found = self._base().in_bulk(pks)
        return [found[pk] for pk in pks if pk in found]

    def _references(self, pks: list[Any]) -> list[M]:
        """Return instances of which nothing but the key is loaded."""
        names = [field.attname for field in self.model._meta.pk_fields]
        alone = len(names) == 1
        return [self.model.from_db(self.db, names, [pk] if alone else pk) for pk in pks]

    def _present(self, objs: list[M], updated: int) -> list[M]:
        if updated == len(objs):
            return objs
        present = self._base().in_bulk([obj.pk for obj in objs])
        return [obj for obj in objs if obj.pk in present]

    def _send(self, signal: BulkSignal, instances: list[M], **arguments: Any) -> None:
        if instances:
            size = self.signal_chunk_size
            signal.send(self.model, instances=instances, using=self.db, chunk_size=size, **arguments)


class BulkSignalManager(models.Manager.from_queryset(BulkSignalQuerySet)):  # type: ignore[misc]  # made at run time
    """A manager of `BulkSignalQuerySet`; related managers of a model take its class over."""

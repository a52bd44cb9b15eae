"""The actions of operators, each with an entry in the admin's log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.contrib.admin.models import CHANGE, LogEntry
from django.db import router, transaction
from django.db.models import BigIntegerField
from django.utils.translation import gettext as _

from outbox.models import Delivery, Event, PausedHandler
from outbox.publishing.notify import wake_on_commit
from outbox.registry import registry

# The most rows that one request locks and logs.
MAX_AT_ONCE = 1000

_ID_DIGITS = len(str(BigIntegerField.MAX_BIGINT))

DISCARDABLE = (Delivery.State.FAILED, Delivery.State.PENDING)


def as_ids(pks: list[str]) -> list[int]:
    """Return the valid delivery ids of a request, at most `MAX_AT_ONCE`."""
    ids = (int(pk) for pk in dict.fromkeys(pks) if pk.isascii() and pk.isdigit() and len(pk) <= _ID_DIGITS)
    return [pk for pk in ids if pk <= BigIntegerField.MAX_BIGINT][:MAX_AT_ONCE]


def as_uuids(pks: list[str]) -> list[UUID]:
    """Return the valid event ids of a request, at most `MAX_AT_ONCE`."""
    found = []
    for pk in dict.fromkeys(pks):
        with suppress(ValueError):
            found.append(UUID(pk))
    return found[:MAX_AT_ONCE]


def retry(pks: list[int], user: Any) -> int:
    """Retry failed deliveries, and return how many there were."""
    return _change(pks, (Delivery.State.FAILED,), lambda chosen: chosen.retry(), user, _("Retried."))


def discard(pks: list[int], user: Any, reason: str) -> int:
    """Discard failed and pending deliveries, and return how many there were."""
    text = _("Discarded by %(user)s: %(reason)s") % {"user": user.get_username(), "reason": reason}
    skipping = registry.skipping()
    return _change(pks, DISCARDABLE, lambda chosen: chosen.discard(text, skipping=skipping), user, text)


def cancel(pks: list[UUID], user: Any, reason: str) -> int:
    """Discard the pending deliveries of events, and return how many there were."""
    text = _("Cancelled by %(user)s: %(reason)s") % {"user": user.get_username(), "reason": reason}
    database = router.db_for_write(Delivery)
    cancelled, events = 0, Event.objects.using(database)
    with transaction.atomic(using=database):
        for event in events.filter(pk__in=pks).defer("payload", "headers").order_by("pk"):
            if discarded := event.cancel(text):
                cancelled += discarded
                LogEntry.objects.log_actions(user.pk, [event], CHANGE, text)
        wake_on_commit(database)
    return cancelled


def pause(handler: str, user: Any, reason: str) -> bool:
    """Pause a handler, and return whether it was not paused yet."""
    database = router.db_for_write(PausedHandler)
    with transaction.atomic(using=database):
        paused: bool = PausedHandler.objects.using(database).pause(handler, reason)
        if paused:
            message = _("Paused: %(reason)s") % {"reason": reason}
            LogEntry.objects.log_actions(user.pk, [PausedHandler(handler)], CHANGE, message)
    return paused


def resume(handlers: Iterable[str], user: Any) -> int:
    """Resume handlers, and return how many were paused."""
    database = router.db_for_write(PausedHandler)
    resumed: list[str] = PausedHandler.objects.using(database).resume_all(handlers)
    if resumed:
        rows = [PausedHandler(name) for name in resumed]
        LogEntry.objects.log_actions(user.pk, rows, CHANGE, _("Resumed."))
    wake_on_commit(database)
    return len(resumed)


def still_waits(handlers: Iterable[str]) -> bool:
    """Return whether deliveries of resumed handlers still wait; relays make them due."""
    waiting = Delivery.objects.using(router.db_for_write(Delivery)).pending()
    return bool(waiting.filter(waits_for=Delivery.WaitsFor.RESUME, handler__in=list(handlers)).exists())


def _change(
    pks: list[int], states: tuple[str, ...], verb: Callable[[Any], int], user: Any, message: str
) -> int:
    database = router.db_for_write(Delivery)
    deliveries = Delivery.objects.using(database)
    with transaction.atomic(using=database):
        # Locked, so that the log names exactly the deliveries that the verb changes.
        candidates = deliveries.filter(pk__in=pks, state__in=states).order_by("pk")
        chosen = list(candidates.select_for_update().only("pk", "handler"))
        if not chosen:
            return 0
        changed = verb(deliveries.filter(pk__in=[delivery.pk for delivery in chosen]))
        LogEntry.objects.log_actions(user.pk, chosen, CHANGE, message)
        wake_on_commit(database)
    return changed

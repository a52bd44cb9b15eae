"""The tags of a delivery's events and transactions."""

from __future__ import annotations

from collections.abc import Iterable

from django.urls import NoReverseMatch, reverse

from outbox.run import Run

from .active import site_url


def tags_of_run(run: Run) -> dict[str, str]:
    """Return the tags of a run; a batch has neither delivery nor link, as a tag has one value."""
    delivery = {} if run.batched else tags_of_delivery(run.deliveries[0].id, run.handler)
    topic = destination(event.topic for event in run.events)
    return {"outbox.handler": run.handler, "outbox.topic": topic, **delivery}


def tags_of_delivery(delivery_id: int, handler: str) -> dict[str, str]:
    """Return the tags of a delivery, with the address of its page in the admin if there is an admin."""
    tags = {"outbox.delivery": str(delivery_id), "outbox.handler": handler}
    try:
        path = reverse("admin:outbox_delivery_change", args=[delivery_id])
    except NoReverseMatch:
        return tags
    return {**tags, "outbox.admin": f"{site_url()}{path}"}


def destination(topics: Iterable[str]) -> str:
    """Return the topic of events, or a text that stands for several topics."""
    distinct = set(topics)
    return distinct.pop() if len(distinct) == 1 else "several topics"

"""Brokers for Dramatiq: one with a faster consumer, and one without a server.

A broker is imported when its name is first used, so that a project with RabbitMQ needs no client of Redis.
The package holds no models: settings may name a broker before Django's apps are ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import EmbeddedBroker as EmbeddedBroker
    from .redis import RedisBroker as RedisBroker

__all__ = ["EmbeddedBroker", "RedisBroker"]


if not TYPE_CHECKING:
    # A type checker that read this would accept every misspelt name.
    def __getattr__(name: str) -> Any:
        if name == "EmbeddedBroker":
            from .embedded import EmbeddedBroker

            return EmbeddedBroker
        if name == "RedisBroker":
            from .redis import RedisBroker

            return RedisBroker
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

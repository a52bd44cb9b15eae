"""Drop-in brokers for Dramatiq with faster consumers.

A broker is imported when its name is first used, so that a project with RabbitMQ needs no client of Redis.
The package holds no models: settings may name a broker before Django's apps are ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .redis import RedisBroker as RedisBroker

__all__ = ["RedisBroker"]


if not TYPE_CHECKING:
    # A type checker that read this would accept every misspelt name.
    def __getattr__(name: str) -> Any:
        if name != "RedisBroker":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .redis import RedisBroker

        return RedisBroker

"""The base of the signals that publish every send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.dispatch import Signal

from .recorder import Recorder
from .unpublished import is_unpublished


class PublishingSignal(Signal):
    """A signal that publishes each send before its ordinary receivers run."""

    recorder: Recorder

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Publish one send.

        Raises:
            PublishError: as `outbox.publish()` does.
        """
        raise NotImplementedError

    def _published(self, sender: Any, named: dict[str, Any]) -> dict[str, Any]:
        """Publish one send unless it is published already; return the arguments of ordinary receivers."""
        if not is_unpublished(self, sender, named):
            self._publish(sender, named)
        return named

    # The robust methods publish before Django catches errors, so that a refused send raises in the sender.
    def send(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish the send, and call the ordinary receivers as Django does."""
        return super().send(sender, **self._published(sender, named))

    def send_robust(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish the send, and call the ordinary receivers, whose errors are returned."""
        return super().send_robust(sender, **self._published(sender, named))

    async def asend(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish and send as `send` does, from async code."""
        return await super().asend(sender, **await sync_to_async(self._published)(sender, named))

    async def asend_robust(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish and send as `send_robust` does, from async code."""
        return await super().asend_robust(sender, **await sync_to_async(self._published)(sender, named))

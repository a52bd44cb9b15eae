"""The outcomes of the flush that goes on."""

from __future__ import annotations

from collections.abc import Iterable

from .buffer import Buffer


class InFlush:
    """The outcomes that a flush has taken; its lock is that of the flusher.

    Attributes:
        buffers: the buffers as the flush took them.
        number: the outcomes that are not put back.
        text_bytes: the size of their texts.
    """

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.number = self.text_bytes = 0

    def begin(self, buffers: Iterable[Buffer]) -> None:
        """Remember the buffers of a flush."""
        self.buffers = list(buffers)
        self.number = sum(len(buffer.outcomes) for buffer in self.buffers)
        self.text_bytes = sum(buffer.text_bytes for buffer in self.buffers)

    def size_with(self, buffer: Buffer | None) -> tuple[int, int]:
        """Return the number of these and of buffered outcomes, and the size of their texts."""
        if buffer is None:
            return self.number, self.text_bytes
        return self.number + len(buffer.outcomes), self.text_bytes + buffer.text_bytes

    def put_back(self, left: Buffer) -> None:
        """Count outcomes that are buffered again."""
        self.number -= len(left.outcomes)
        self.text_bytes -= left.text_bytes

    def end(self) -> None:
        """Forget the flush."""
        self.buffers = []
        self.number = self.text_bytes = 0

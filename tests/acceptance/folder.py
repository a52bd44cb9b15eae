"""The files of the handler `filed`, which needs no database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folder:
    """The runs of `filed` that have begun and ended, and the file that makes them wait in between."""

    path: Path

    @property
    def begun(self) -> list[str]:
        """The ids of the events whose handler has begun, once per run."""
        return self._lines("begun")

    @property
    def done(self) -> list[str]:
        """The ids of the events whose handler has ended, once per run."""
        return self._lines("done")

    @property
    def deaths(self) -> list[str]:
        """The ids of the events whose handler `deadly` has killed a worker, once per kill."""
        return self._lines("deaths")

    def hold(self) -> None:
        """Make every handler that begins wait."""
        (self.path / "hold").touch()

    def resume(self) -> None:
        """Let waiting handlers continue."""
        (self.path / "hold").unlink()

    def _lines(self, name: str) -> list[str]:
        file = self.path / name
        return file.read_text().split() if file.exists() else []

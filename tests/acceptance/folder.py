"""The traces of the handler `filed`, which needs no database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folder:
    """What `filed` has begun and done, and the file that holds it up in between."""

    path: Path

    @property
    def begun(self) -> list[str]:
        """The ids of the events whose handler has begun, once for each time."""
        return self._lines("begun")

    @property
    def done(self) -> list[str]:
        """The ids of the events whose handler has ended, once for each time."""
        return self._lines("done")

    @property
    def deaths(self) -> list[str]:
        """The ids of the events whose handler `deadly` has killed a worker, once for each time."""
        return self._lines("deaths")

    def hold(self) -> None:
        """Let every handler that begins wait."""
        (self.path / "hold").touch()

    def let_go(self) -> None:
        """Let those that wait go on."""
        (self.path / "hold").unlink()

    def _lines(self, name: str) -> list[str]:
        file = self.path / name
        return file.read_text().split() if file.exists() else []

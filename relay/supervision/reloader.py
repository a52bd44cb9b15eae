"""The supervisor of `run_relay --reload`: it restarts the processes when a file of the project changes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from django.apps import apps
from django.utils.autoreload import StatReloader

from .child import Child
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

# Django's reloader looks as often.
CHECK_INTERVAL_S = 1.0

# The folder of installed packages, whose files do not change during development.
INSTALLED = {"site-packages", "dist-packages"}

Snapshot = Callable[[], Iterable[tuple[Path, float]]]


class FileChanges:
    """Notices changed, new and removed files.

    Args:
        snapshot: returns the watched files that exist, each with the time of its last change.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known = dict(snapshot())

    def find(self) -> str:
        """Return the path of a file that has changed since the last call, empty if none has."""
        known, self._known = self._known, dict(self._snapshot())
        changed = known.items() ^ self._known.items()
        return str(min(path for path, _changed_at in changed)) if changed else ""


def project_files() -> Snapshot:
    """Return the snapshots of the imported modules, and of all modules of the project's apps."""
    reloader = StatReloader()
    for app in apps.get_app_configs():
        if INSTALLED.isdisjoint(Path(app.path).parts):
            reloader.watch_dir(app.path, "**/*.py")
    return reloader.snapshot_files


class Reloader(Supervisor):
    """Restarts its processes at each change, and waits for a change if they cannot start."""

    def __init__(self, *arguments: Any, changes: FileChanges, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._changes = changes
        self._reloading: set[Child] = set()

    def _due_in_s(self) -> float | None:
        due_in_s = super()._due_in_s()
        return CHECK_INTERVAL_S if due_in_s is None else min(due_in_s, CHECK_INTERVAL_S)

    def _start_due(self) -> None:
        if self._restarts() and (changed := self._changes.find()):
            logger.info("%s changed, so the relay starts again", changed)
            self._reloading = {child for child in self._children if child.running}
            self._send_to_all(signal.SIGTERM)
            for child in self._children:
                child.backoff.reset()
        super()._start_due()

    def _note_end(self, child: Child, code: int, description: str) -> None:
        if child in self._reloading and self._restarts():
            self._reloading.discard(child)
            child.forget_process()
            child.backoff.reset()
        else:
            super()._note_end(child, code, description)

    def _stop_if_all_keep_dying(self, code: int) -> None:
        """Do nothing: the next change of a file may be the remedy."""

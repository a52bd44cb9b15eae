"""Folders that the processes of one host share."""

from __future__ import annotations

import stat
import tempfile
from hashlib import sha256
from pathlib import Path

from django.db import connections

from outbox.posix import user_id


def name_of(*aliases: str) -> str:
    """Return a file name for databases, equal in all processes with the same database settings."""
    named = []
    for alias in aliases:
        settings = connections.settings[alias]
        options = settings.get("OPTIONS") or {}
        # These options of libpq may name the server, the database and the schema instead of the settings.
        where = [settings.get(key) for key in ("ENGINE", "HOST", "PORT", "NAME")]
        named.append((alias, *map(str, where), *map(str, (options.get("service"), options.get("options")))))
    return sha256(repr(named).encode()).hexdigest()[:16]


def own_folder(path: str, name: str) -> Path:
    """Return a folder, and create it if it does not exist.

    Args:
        path: the folder; empty for a folder of this user among the temporary files.
        name: the name of the folder among the temporary files, without the user id that follows.

    Raises:
        OSError: if the folder cannot be created. Without a path: on Windows, and if others can write to it.
    """
    folder = Path(path) if path else Path(tempfile.gettempdir()) / f"{name}-{user_id()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    # Another user may have created a folder of that name, with false content.
    if not path and (not stat.S_ISDIR(found.st_mode) or found.st_uid != user_id() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} is not a folder that only this user can write to; remove it")
    return folder

"""Folders for what the processes of one host tell each other."""

from __future__ import annotations

import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

from django.db import connections


def name_of(*aliases: str) -> str:
    """Return a name for databases that processes with the same settings share, and others do not."""
    named = []
    for alias in aliases:
        settings = connections.settings[alias]
        options = settings.get("OPTIONS") or {}
        # Two of libpq's own may say where a database is, and in which schema, when the other settings do not.
        where = [settings.get(key) for key in ("ENGINE", "HOST", "PORT", "NAME")]
        named.append((alias, *map(str, where), *map(str, (options.get("service"), options.get("options")))))
    return sha256(repr(named).encode()).hexdigest()[:16]


def own_folder(path: str, name: str) -> Path:
    """Return a folder, made if need be; without a path, one of this user's among the temporary files.

    Args:
        name: what that one is called, before the number of the user.

    Raises:
        OSError: if there is none that only this user can write to.
    """
    folder = Path(path) if path else Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    # Anybody may make a folder of that name, and tell what is not true by what is in it.
    if not path and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} is not this user's alone")
    return folder

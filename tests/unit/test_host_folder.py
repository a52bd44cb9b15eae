"""Folders among the temporary files, where any user may create one."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from django.db import connections

from outbox.host_folder import name_of, own_folder


def test_only_this_user_can_write_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = own_folder("", "mine")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert own_folder("", "mine") == folder
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not a folder that only this user can write to"):
        own_folder("", "mine")
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(PermissionError):
        own_folder("", "mine")
    assert own_folder(str(tmp_path / "named"), "mine") == tmp_path / "named"


@pytest.mark.parametrize(
    "other",
    [{"NAME": "b"}, {"OPTIONS": {"service": "b"}}, {"OPTIONS": {"options": "-c search_path=b"}}],
)
def test_each_database_has_a_different_name(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, object]
) -> None:
    settings = {"ENGINE": "django.db.backends.postgresql", "NAME": "a", "OPTIONS": {"service": "a"}}
    monkeypatch.setitem(connections.settings, "default", settings)
    name = name_of("default")
    monkeypatch.setitem(
        connections.settings, "default", {**settings, "OPTIONS": {"service": "a", "x": object()}}
    )
    assert name_of("default") == name
    monkeypatch.setitem(connections.settings, "default", settings | other)
    assert name_of("default") != name

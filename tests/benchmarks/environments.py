"""A virtual environment for each peer, kept in `.bench/` for later runs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .drivers import ROOT

FOLDER = ROOT / ".bench"
INSTALL_TIMEOUT_S = 300.0


class EnvironmentMissing(Exception):
    """A peer cannot be installed."""


def python_for(name: str, requirements: Sequence[str], *, at_least: tuple[int, int] = (3, 11)) -> str:
    """Return the interpreter of an environment with these requirements; create it if it is missing.

    Raises:
        EnvironmentMissing: if the environment cannot be created.
    """
    base = _interpreter(at_least)
    key = hashlib.sha256("\n".join([base, *requirements]).encode()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run(base, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    except EnvironmentMissing:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / "complete").touch()
    return str(python)


def _interpreter(at_least: tuple[int, int]) -> str:
    if sys.version_info[:2] >= at_least:
        return sys.executable
    for minor in range(at_least[1] + 2, at_least[1] - 1, -1):
        for candidate in (f"python3.{minor}", *_of_pyenv(minor)):
            if _runs(candidate, minor):
                return candidate
    raise EnvironmentMissing(f"no Python {at_least[0]}.{at_least[1]} or newer on PATH or in pyenv")


def _of_pyenv(minor: int) -> list[str]:
    return [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))]


def _runs(candidate: str, minor: int) -> bool:
    # A shim of pyenv may exist and not run.
    question = f"import sys, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
    try:
        return subprocess.run([candidate, "-c", question], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise EnvironmentMissing(f"not installed within {INSTALL_TIMEOUT_S:g} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise EnvironmentMissing(f"pip: {errors[-1] if errors else 'failed without a message'}")

"""The recipes of the cookbook: each is written into an empty project, and its tests are run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, SQLITE

COOKBOOK = ROOT / "docs" / "cookbook"
RECIPES = sorted(path.stem for path in COOKBOOK.glob("*.md") if path.stem != "index")
FILE = re.compile(r"^```python\n# ([\w/]+\.py)( \(at the end\))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SETTINGS = """
import os
import dj_database_url

SECRET_KEY = "only-for-tests"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "outbox", "django_dramatiq", "shop"]
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
DATABASES["default"]["TEST"] = {"NAME": os.environ["RECIPE_DATABASE"]}
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}  # Django 6.1 and later
STORAGES = {"default": {"BACKEND": "django.core.files.storage.InMemoryStorage"}}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.stub.StubBroker",
    "OPTIONS": {},
    "MIDDLEWARE": [
        "dramatiq.middleware.TimeLimit", "dramatiq.middleware.Retries", "dramatiq.middleware.AsyncIO"
    ],
}
"""
TENANTS = """
from project.tenants import *
DATABASES["default"]["ENGINE"] = DATABASE_ENGINE
"""


def files_of(page: str) -> dict[str, str]:
    """Return the contents of a page's files, by path."""
    files: dict[str, str] = {}
    for path, appended, code in FILE.findall(page):
        files[path] = files[path] + code if appended and path in files else code
    return files


def write_project(folder: Path, recipe: str) -> None:
    """Write the project with the files of the recipe."""
    page = (COOKBOOK / "index.md").read_text() + (COOKBOOK / f"{recipe}.md").read_text()
    settings = SETTINGS + (TENANTS if recipe == "tenants" else "")
    for path, code in (files_of(page) | {"project/settings.py": settings}).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code)
        for package in target.relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").touch()


def environment(folder: Path) -> Mapping[str, str]:
    """Return the environment of the recipe's tests, with a database of their own."""
    name = f"test_recipe_{uuid.uuid4().hex[:8]}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_TEST_")}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        "RECIPE_DATABASE": str(folder / name) if SQLITE else name,
    }


def run(folder: Path, *module_and_arguments: str) -> None:
    """Run a module of Python in the project."""
    command = [sys.executable, "-m", *module_and_arguments]
    env = environment(folder)
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tests_of_a_recipe_pass(recipe: str, tmp_path: Path) -> None:
    write_project(tmp_path, recipe)
    if recipe == "tenants":
        # Each tenant's schema is made by migrations.
        run(tmp_path, "django", "makemigrations", "shop", "customers")
    run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir=.", "shop/tests.py")


def test_every_recipe_is_listed() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (COOKBOOK / "index.md").read_text())
    assert sorted(listed) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_tests(recipe: str) -> None:
    assert "def test_" in files_of((COOKBOOK / f"{recipe}.md").read_text())["shop/tests.py"]

"""The checks of CI, each in an environment of its own: `nox --list` shows them, `nox -s lint` runs one."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "docs", "tests"]

# Django 6 needs Python 3.12. Python 3.14 is an experiment: CI shows its failures and passes.
PYTHONS = {
    "5.2": ["3.11", "3.12", "3.13", "3.14"],
    "6.0": ["3.12", "3.13", "3.14"],
    "6.1": ["3.12", "3.13", "3.14"],
}
PAIRS = [(python, django) for django, pythons in PYTHONS.items() for python in pythons]
PARALLEL = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, django: str = "", package: str = ".") -> None:
    """Install the package and dependency groups."""
    needed = nox.project.dependency_groups(PYPROJECT, *groups)
    editable = ["--editable"] if package == "." else []
    version = [f"Django=={django}.*"] if django else []
    session.install("--quiet", *editable, f"{package}[redis,rabbitmq]", *version, *needed)


@nox.session
@nox.parametrize(("python", "django"), PAIRS)
def tests(session: nox.Session, django: str) -> None:
    """All tests; arguments go to pytest."""
    install(session, "test", django=django)
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session
def sqlite(session: nox.Session) -> None:
    """The tests that need no PostgreSQL, on SQLite."""
    install(session, "test")
    folders = ("tests/unit", "tests/integration")
    environment = {"OUTBOX_TEST_DATABASE": "sqlite"}
    session.run("python", "-m", "pytest", *PARALLEL, "-m", "not postgres", *folders, env=environment)


@nox.session
def naive_times(session: nox.Session) -> None:
    """Unit and integration tests with `USE_TZ` off."""
    install(session, "test")
    environment = {"OUTBOX_TEST_NAIVE_ZONE": "Asia/Kolkata"}
    session.run("python", "-m", "pytest", *PARALLEL, "tests/unit", "tests/integration", env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the contracts between modules, and limits of length."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("python", "-m", "tests.support.limits")


@nox.session
def types(session: nox.Session) -> None:
    """Annotations."""
    install(session, "test", "types")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site."""
    install(session, "docs")
    session.run(
        "python",
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--fresh-env",
        "--quiet",
        "docs",
        "build/site",
    )


@nox.session
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, and run the acceptance tests against the wheel, without the source tree."""
    session.install("--quiet", "build>=1.2", "twine>=6")
    away = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", f"{away}/dist")
    (built,) = Path(away, "dist").glob("*.whl")
    session.run("twine", "check", "--strict", *map(str, built.parent.iterdir()))
    install(session, "test", package=str(built))
    for name in ("pyproject.toml", "README.md", "tests", "example"):
        session.run("cp", "-R", name, f"{away}/{name}", external=True)
    session.chdir(away)
    session.run(
        "python", "-c", "import outbox, relay; assert 'site-packages' in outbox.__file__ + relay.__file__"
    )
    session.run("python", "-m", "pytest", *PARALLEL, "tests/acceptance", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests with coverage over processes; fails below the floors."""
    install(session, "test", "coverage")
    Path("build/coverage").mkdir(parents=True, exist_ok=True)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--skip-covered")
    session.run("coverage", "json", "--quiet")
    session.run("python", "-m", "tests.support.coverage_floor")


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the dependencies, and the security of the workflows."""
    install(session, "audit")
    session.run("pip-audit", "--skip-editable")
    session.run("zizmor", "--offline", ".github")

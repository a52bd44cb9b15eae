"""The documentation site: `make docs` builds it from the Markdown of this folder.

The pages hold no directives of Sphinx, so that they are readable on a code host. This module adds them:

* Each section of `index.md` with a list of pages becomes a part of the navigation. A page that no section
  lists is an error.
* Each item of `reference/api.md` that names a public object becomes the object's signature and docstring.
* `changelog.md` shows the changelog of the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import django
from django.conf import settings
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Models can be imported only in a project.
settings.configure(
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django_dramatiq",
        "outbox",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DRAMATIQ_BROKER={"BROKER": "dramatiq.brokers.stub.StubBroker", "OPTIONS": {}, "MIDDLEWARE": []},
)
django.setup()

import outbox  # noqa: E402 - after the settings

project = "django-dramatiq-outbox"
author = "The django-dramatiq-outbox contributors"
project_copyright = author
release = version = outbox.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_static"]

# The anchors of a code host: `#how-to-guides`.
myst_heading_anchors = 4

# Docstrings mark code as Markdown does, with single backticks.
default_role = "code"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The sources of the pages are in the repository.
html_copy_source = False
pygments_style = "default"
# A prompt and the output of a command are not to be copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\(([\w/-]+)\.md\)")
API_NAME = re.compile(r"^- `(outbox\.[\w.]+)`.*\n(?:  .*\n)*", re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Connect the functions that add directives, and choose the members of classes."""
    app.connect("source-read", _add_directives)
    app.connect("autodoc-skip-member", _skip_field_of_a_named_tuple)


def _add_directives(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        source[0] += "".join(_navigation(source[0]))
    elif page == "reference/api":
        source[0] = API_NAME.sub(lambda item: _autodoc(item[1]), source[0])
    elif page == "changelog":
        source[0] = (ROOT / "CHANGELOG.md").read_text()


def _skip_field_of_a_named_tuple(
    _app: Sphinx, _kind: str, _name: str, member: object, skip: bool, _options: object
) -> bool:
    """Return whether to leave a member out: the signature has the fields already."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")


def _navigation(text: str) -> list[str]:
    """Return a hidden table of contents for each section that lists pages."""
    _introduction, *sections = SECTION.split(text)
    contents = []
    for title, section in zip(sections[::2], sections[1::2], strict=True):
        listed = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
        pages = "\n".join(dict.fromkeys(PAGE_LINK.findall(listed)))
        if pages:
            contents.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n")
    return contents


def _autodoc(name: str) -> str:
    """Return the directive that documents a public object."""
    module, _, attribute = name.rpartition(".")
    __import__(module)
    found = getattr(sys.modules[module], attribute)
    if not isinstance(found, type):
        kind = "function" if callable(found) else "data"
        return f"```{{eval-rst}}\n.. auto{kind}:: {name}\n```\n\n"
    kind = "exception" if issubclass(found, BaseException) else "class"
    return f"```{{eval-rst}}\n.. auto{kind}:: {name}\n   :members:\n```\n\n"

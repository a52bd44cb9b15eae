"""Names of classes that other processes can look up; a lookup runs no code except imports."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def path_of(cls: type) -> str:
    """Return the name of a class, as `module:qualname`.

    Raises:
        LookupError: if another process would not find the class under this name.
    """
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or module is None or _walk(module, cls.__qualname__) is not cls:
        raise LookupError(f"class {cls.__module__}.{cls.__qualname__} cannot be imported by that name")
    return f"{cls.__module__}:{cls.__qualname__}"


def find(path: str, required: type = object) -> type:
    """Return the class at `module:qualname`, a subclass of `required`.

    Raises:
        LookupError: if there is no such class.
    """
    module_name, _, qualname = path.partition(":")
    found = _walk(_module(module_name), qualname)
    if not isinstance(found, type) or not issubclass(found, required):
        raise LookupError(
            f"{path!r} is not a class derived from {required.__name__}; was it moved or renamed?"
        )
    return found


def _module(name: str) -> ModuleType:
    module = sys.modules.get(name)
    if module is None:
        # A name in the table must not import a package that the project does not use.
        if name.partition(".")[0] not in sys.modules:
            raise LookupError(f"module {name!r} belongs to no imported package; import it from a handlers.py")
        try:
            module = import_module(name)
        except ImportError as error:
            raise LookupError(f"module {name!r} cannot be imported: {error}") from error
    return module


def _walk(module: ModuleType, qualname: str) -> Any:
    # vars() and not getattr(), which would run descriptors and a module's __getattr__.
    found: Any = module
    for name in qualname.split("."):
        if not isinstance(found, (ModuleType, type)):
            return None
        found = vars(found).get(name)
    return found

"""Former names of handlers that name more than one handler."""

from __future__ import annotations

from collections.abc import Mapping

from outbox.registry import Handler


def clashes(handlers: Mapping[str, Handler]) -> list[str]:
    """Return an error message for each former name that is also declared, or that two handlers have.

    Args:
        handlers: all handlers by name.
    """
    facts, owners = list[str](), dict[str, str]()
    for name, handler in handlers.items():
        for old in handler.former_names:
            if old in handlers:
                facts.append(f"the former name {old!r} of handler {name!r} is the name of a declared handler")
            elif owners.setdefault(old, name) != name:
                facts.append(f"handlers {owners[old]!r} and {name!r} have the same former name {old!r}")
    return facts

"""The versions of the format of rows and messages that this release writes and reads.

Rows and messages share one sequence of versions, since a message carries the payload of its row unchanged. A
version is read by one release before the next release writes it. So processes of successive releases read
each other's rows and messages, whichever is upgraded first. `docs/reference/upgrading.md` is the contract.
"""

from __future__ import annotations

# The version of the rows and messages that this release writes.
WRITTEN = 1

# This release reads WRITTEN, the version of the release before, and the version that the next release may
# write. A release that raises OLDEST has a migration that rewrites older rows: they may be due in a year.
OLDEST = 1
NEWEST = 1

# The version of rows whose publisher writes no version. It never changes, since old publishers do not change.
UNWRITTEN = 1


def why_unreadable(version: int) -> str:
    """Return the reason why this process must not run a row or message of a version, empty if it may."""
    if version > NEWEST:
        return f"it is of version {version}, and this process reads none after {NEWEST}; upgrade it"
    if version < OLDEST:
        return f"it is of version {version}, and this process reads none before {OLDEST}"
    return ""

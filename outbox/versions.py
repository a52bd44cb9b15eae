"""The form of rows and messages has a version: which one this release writes, and which ones it reads.

One sequence of numbers counts for both, since a message carries the payload of its row as it is. A version
is read by one release before another writes it, so that neighbouring releases understand each other whichever
of their processes is upgraded first. `docs/reference/upgrading.md` is the contract.
"""

from __future__ import annotations

# What the rows and messages of this release say.
WRITTEN = 1

# What it reads: WRITTEN, the one that the release before it wrote, and the one that the next may write. A
# release that raises OLDEST brings a migration that rewrites older rows, which may be due only in a year.
OLDEST = 1
NEWEST = 1

# Of a publisher that does not write a version; it never changes, since old publishers do not.
UNWRITTEN = 1


def why_unreadable(version: int) -> str:
    """Return why a row or message of a version must not be run by this process, empty if it may."""
    if version > NEWEST:
        return f"it is of version {version}, and this process reads none after {NEWEST}; upgrade it"
    if version < OLDEST:
        return f"it is of version {version}, and this process reads none before {OLDEST}"
    return ""

"""Names that no other test uses, on servers that sessions share."""

from __future__ import annotations

import os
import uuid


def unique_name() -> str:
    """Return a name for a queue or a namespace, with the prefix of the session."""
    return f"{os.environ['OUTBOX_TEST_PREFIX']}{uuid.uuid4().hex[:8]}"

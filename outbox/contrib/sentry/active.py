"""The integration of the active client."""

from __future__ import annotations

import sentry_sdk

IDENTIFIER = "outbox"


def is_active() -> bool:
    """Return whether the active client has the integration."""
    return sentry_sdk.get_client().get_integration(IDENTIFIER) is not None


def site_url() -> str:
    """Return the address of the site for links, empty if it is unknown."""
    return getattr(sentry_sdk.get_client().get_integration(IDENTIFIER), "site_url", "")

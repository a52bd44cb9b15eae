"""The error of the demo."""


class DemoError(Exception):
    """The demo cannot continue; the message has the reason."""

"""Conditions for plain receivers (as decorators) and background receivers (as decorators or `when=`).

    @receiver(post_save, sender=Order)
    @only_when_field_changed("status")          # below @receiver, which connects the decorated function
    def mail_status(sender, instance, changes, **kwargs): ...

Conditions combine with `&`, `|` and `~`. They are checked in the sender's process, at send time.
"""

from .base import Condition, refuse_condition, split_condition
from .common import only_for_models, only_in_environment, signal_condition
from .fields import only_when_field_changed
from .snapshots import UNKNOWN, Unknown

__all__ = [
    "UNKNOWN",
    "Condition",
    "Unknown",
    "only_for_models",
    "only_in_environment",
    "only_when_field_changed",
    "refuse_condition",
    "signal_condition",
    "split_condition",
]

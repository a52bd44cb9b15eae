"""When a receiver runs: conditions for plain receivers (as decorators) and background receivers (as `when=`).

    @receiver(post_save, sender=Order)
    @only_when_field_changed("status")          # below @receiver: the outer one connects what it is given
    def mail_status(sender, instance, changes, **kwargs): ...

They combine with `&`, `|` and `~`, and are decided in the sender's process, at send time.
"""

from outbox.conditions.base import Condition, split_condition
from outbox.conditions.common import only_for_models, only_in_environment, signal_condition
from outbox.conditions.fields import only_when_field_changed
from outbox.conditions.snapshots import UNKNOWN, Unknown

__all__ = [
    "UNKNOWN",
    "Condition",
    "Unknown",
    "only_for_models",
    "only_in_environment",
    "only_when_field_changed",
    "signal_condition",
    "split_condition",
]

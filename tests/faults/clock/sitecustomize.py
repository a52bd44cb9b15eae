"""Set the clock of this process wrong by `OUTBOX_TEST_CLOCK_OFFSET_S`, as on a host without NTP.

Python imports a module of this name at its start, before any other module reads the clock.
"""

import datetime
import os
import time

offset_s = float(os.environ.get("OUTBOX_TEST_CLOCK_OFFSET_S", "0"))
offset_ns = int(offset_s * 1e9)
offset = datetime.timedelta(seconds=offset_s)

right_time, right_time_ns = time.time, time.time_ns
RightDatetime = datetime.datetime


class AnyDatetime(type(RightDatetime)):
    """Accepts instances that C code has made."""

    def __instancecheck__(cls, instance):
        return isinstance(instance, RightDatetime)

    def __subclasscheck__(cls, subclass):
        return issubclass(subclass, RightDatetime)


class WrongDatetime(RightDatetime, metaclass=AnyDatetime):
    @classmethod
    def now(cls, tz=None):
        return RightDatetime.now(tz) + offset

    @classmethod
    def utcnow(cls):
        return RightDatetime.now(datetime.UTC).replace(tzinfo=None) + offset

    @classmethod
    def today(cls):
        return RightDatetime.now() + offset


time.time = lambda: right_time() + offset_s
time.time_ns = lambda: right_time_ns() + offset_ns
datetime.datetime = WrongDatetime

"""The amount of work in a run of the fault tests: small in `make test`, larger in `make soak`."""

from __future__ import annotations

import os
import random
from datetime import timedelta

# How often each scenario repeats its faults.
ROUNDS = int(os.environ.get("OUTBOX_SOAK_ROUNDS", "1"))

# The seed of all random choices. A failed run prints its seed, so that it can be repeated.
SEED = int(os.environ.get("OUTBOX_FAULTS_SEED") or random.SystemRandom().randrange(2**32))

# How long a late transaction stays open: longer than the margin of a scan cursor.
LATE_S = float(os.environ.get("OUTBOX_SOAK_LATE_S", "3"))

# A publisher sells a few times in a row with one ordering key, so that a delivery waits for another. Then it
# changes the key, so that no key gets more deliveries than one per POLL_INTERVAL can dispatch.
KEYS = 16
IN_A_ROW = 3

# The time for one effect of the backlog: the work of one worker with four threads, a relay, the database and
# the broker, on two cores. After an outage of seconds the backlog has hundreds of effects.
WORK = timedelta(seconds=0.003)

# Additional time, for a machine that runs other tests as well.
MARGIN = timedelta(seconds=float(os.environ.get("OUTBOX_FAULTS_MARGIN_S", "10")))

POLL_INTERVAL = timedelta(seconds=0.5)
CONFIRM_TIMEOUT = timedelta(seconds=3)
DISPATCH_TIMEOUT = timedelta(seconds=2)
# How long a Dramatiq worker waits before it consumes from RabbitMQ or Redis again.
RECONNECT = timedelta(seconds=0.5)
# The longest delay before Dramatiq retries a failed message.
RETRY = timedelta(seconds=0.4)
# How often an idle worker checks Redis, and its delayed messages.
IDLE_CHECK = timedelta(seconds=0.1)
# How long RedisBroker counts a silent worker as alive.
HEARTBEAT_TIMEOUT = timedelta(seconds=2)

"""How much a run of the fault tests does: little in `make test`, more in `make soak`."""

from __future__ import annotations

import os
import random
from datetime import timedelta

# How often each scenario repeats its faults.
ROUNDS = int(os.environ.get("OUTBOX_SOAK_ROUNDS", "1"))

# Sets what is random; a run that failed is repeated with the seed that it printed.
SEED = int(os.environ.get("OUTBOX_FAULTS_SEED") or random.SystemRandom().randrange(2**32))

# For how long a late transaction stays open: longer than relays look back from where they have got to.
LATE_S = float(os.environ.get("OUTBOX_SOAK_LATE_S", "3"))

# A publisher sells in one lane a few times in a row, so that one waits for the other; then in the next lane,
# so that no lane gets more than it gets done at one step for each POLL_INTERVAL.
LANES = 16
IN_A_ROW = 3

# What an effect that was missing when the fault ended takes to be caught up with: the work of one worker with
# four threads, a relay, the database and the broker, on two cores. A server that was away for seconds has
# hundreds of them wait.
WORK = timedelta(seconds=0.003)

# Beyond that, on a machine that is busy with other tests as well.
MARGIN = timedelta(seconds=float(os.environ.get("OUTBOX_FAULTS_MARGIN_S", "10")))

POLL_INTERVAL = timedelta(seconds=0.5)
CONFIRM_TIMEOUT = timedelta(seconds=3)
DISPATCH_TIMEOUT = timedelta(seconds=2)
# How long a Dramatiq worker waits before it consumes from RabbitMQ or Redis again.
RECONNECT = timedelta(seconds=0.5)
# How long Dramatiq puts off what failed, at most.
RETRY = timedelta(seconds=0.4)
# How often an idle worker looks at Redis, and at what it has put off.
LOOK = timedelta(seconds=0.1)
# How long RedisBroker takes a silent worker for alive.
HEARTBEAT_TIMEOUT = timedelta(seconds=2)

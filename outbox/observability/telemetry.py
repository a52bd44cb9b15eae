"""Django signals about the outbox: connect to them for alerts, metrics and traces.

The signals are sent after the commit of the fact, with `send_robust`: the error of a receiver is logged and
has no other effect. A signal without receivers costs one look-up. `outbox.observability.logs` writes this
package's log with receivers of these signals. The sender is a class.

`FIELDS` lists the arguments of each signal. A field has the same name and meaning in all signals, and in
the log records:

database      the alias of the database
delivery_id   the id of a delivery
event_id      the id of its event, as text
topic, key    of the event
handler       the name of the handler
queue         the queue of the message
attempt       the number of the dispatch
error         the error with its traceback, or another reason, as text
duration_s    seconds: of the run, or from the claim to the commit of a batch, or of the trouble
counts        the number of deliveries, by handler
handlers      the names of the handlers
broker        the address of a broker, without a password
redelivered   the number of overdue or lost deliveries that are redelivered
failed        the number of overdue deliveries that failed
state         of a process: `running`, `stopping`, `broker away`, `broker full`, `database away`,
              `database error` or `maintenance behind`
host, pid     of the process
version       of this package
queues        the queues that the process serves; an empty list for all
threads       the threads of a worker
server        the database and its server
brokers       the addresses of the brokers, without passwords, or their classes
handler_count the number of declared handlers
wakeup        `listening`, or `polling` with the reason
"""

from __future__ import annotations

from collections.abc import Collection

from django.dispatch import Signal

# ---------------------------------------------------------------- events and deliveries

event_published = Signal()
send_refused = Signal()

batch_claimed = Signal()
batch_dispatched = Signal()
delivery_dispatched = Signal()
delivery_refused = Signal()
deliveries_put_off = Signal()
deliveries_overdue = Signal()
broker_lost = Signal()
deliveries_lost = Signal()
delivery_redelivered = Signal()

delivery_started = Signal()
delivery_succeeded = Signal()
delivery_retried = Signal()
delivery_failed = Signal()
delivery_discarded = Signal()

# ---------------------------------------------------------------- processes

relay_started = Signal()
relay_stopped = Signal()
relay_in_trouble = Signal()
relay_recovered = Signal()

worker_started = Signal()
worker_stopped = Signal()
worker_in_trouble = Signal()
worker_recovered = Signal()

_DELIVERY = ("database", "delivery_id", "event_id", "handler")
_OUTCOME = (*_DELIVERY, "duration_s")
_PROCESS = ("host", "pid", "version", "queues")
_TROUBLE = ("database", "state", "error")
_RECOVERY = ("database", "state", "duration_s")

FIELDS: dict[str, Collection[str]] = {
    "event_published": ("database", "event_id", "topic", "key", "handlers"),
    "send_refused": ("database", "topic", "handlers", "error"),
    "batch_claimed": ("database", "counts"),
    "batch_dispatched": ("database", "counts", "duration_s"),
    "delivery_dispatched": (*_DELIVERY, "topic", "key", "queue", "attempt"),
    "delivery_refused": (*_DELIVERY, "error"),
    "deliveries_put_off": ("database", "counts", "error"),
    "deliveries_overdue": ("database", "redelivered", "failed"),
    "broker_lost": ("database", "broker"),
    "deliveries_lost": ("database", "broker", "redelivered"),
    "delivery_redelivered": _DELIVERY,
    "delivery_started": (*_DELIVERY, "topic", "key"),
    "delivery_succeeded": _OUTCOME,
    "delivery_retried": (*_OUTCOME, "error"),
    "delivery_failed": (*_OUTCOME, "error"),
    "delivery_discarded": (*_OUTCOME, "error"),
    "relay_started": ("database", *_PROCESS, "server", "brokers", "handler_count", "wakeup"),
    "relay_stopped": ("database", *_PROCESS),
    "relay_in_trouble": _TROUBLE,
    "relay_recovered": _RECOVERY,
    "worker_started": (*_PROCESS, "threads"),
    "worker_stopped": (*_PROCESS, "threads"),
    "worker_in_trouble": _TROUBLE,
    "worker_recovered": _RECOVERY,
}

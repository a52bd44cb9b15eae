"""The states of deliveries, compared with a model in plain Python, in random orders of events."""

from __future__ import annotations

from dataclasses import dataclass

import dramatiq
import pytest
from django.db import transaction
from django.db.models.functions import Now
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

import outbox
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event, PausedHandler
from outbox.registry import registry
from outbox.worker.retries import record_retries
from relay.claim import Claim
from relay.dispatch import Dispatcher
from tests.support.data_flow import flush, publish, relay_all
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres, pytest.mark.slow]

MAX_REDELIVERIES = 1


class Boom(Exception):
    """A crash, a rollback, or an error of a handler."""


@dataclass
class Expected:
    """A delivery in the model."""

    state: str = "pending"
    waits_for: str = ""
    attempts: int = 0
    redeliveries: int = 0
    resends: int = 0

    @property
    def is_open(self) -> bool:
        """Return whether its handler may still have to run."""
        return self.state in ("pending", "dispatched")


class Deliveries(RuleBasedStateMachine):
    """Publish, roll back, claim, crash, confirm, retry, discard, pause and redeliver."""

    deliveries = Bundle("deliveries")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, Expected] = {}
        self.paused = False
        self.behaviour = "succeed"
        self.broker = dramatiq.get_broker()
        for table in (Delivery, Event, PausedHandler):
            table.objects.all().delete()
        self.broker.flush_all()
        record_retries(self.broker)

        @outbox.handler(
            "model.*", name="model", queue_name=QUEUE, max_retries=1, min_backoff=1, max_backoff=1
        )
        def model(event: outbox.ReceivedEvent) -> None:
            if self.behaviour == "fail":
                raise Boom

    def teardown(self) -> None:
        """Remove the handler and the messages."""
        flush()
        registry.remove("model")
        self.broker.flush_all()

    # -- publishers

    @rule(target=deliveries)
    def commit(self) -> int:
        """Publish and commit."""
        pk: int = publish("model.x").deliveries.get().pk
        self.model[pk] = Expected()
        return pk

    @rule()
    def roll_back(self) -> None:
        """Publish and roll back."""
        with pytest.raises(Boom), transaction.atomic():
            outbox.publish("model.x")
            raise Boom

    # -- the relay

    @rule()
    def relay(self) -> None:
        """Dispatch all due deliveries."""
        relay_all()
        for expected in self._due():
            if self.paused:
                expected.waits_for = "resume"
            else:
                expected.state, expected.attempts = "dispatched", expected.attempts + 1

    @rule()
    def crash_between_send_and_commit(self) -> None:
        """Send a batch to the broker, and die before the commit."""
        with pytest.raises(Boom), transaction.atomic():
            rows = Claim(database="default", limit=100).claim_due().rows
            if rows:
                paused = PausedHandler.objects.names()
                Dispatcher(database="default").send(rows, timeout_s=5, paused=paused)
            raise Boom

    @rule()
    def dispatch_without_confirmation(self) -> None:
        """Dispatch, and redeliver because no confirmation comes."""
        self.relay()
        self.redeliver_overdue()

    @rule()
    def redeliver_overdue(self) -> None:
        """Make all dispatched deliveries overdue, and redeliver them."""
        flush()
        Delivery.objects.unconfirmed().update(confirm_by="2020-01-01T00:00:00Z")
        Delivery.objects.redeliver_overdue(limit=1000, max_redeliveries=MAX_REDELIVERIES)
        for expected in self.model.values():
            if expected.state != "dispatched":
                continue
            if expected.redeliveries >= MAX_REDELIVERIES:
                expected.state = "failed"
            else:
                expected.state, expected.redeliveries = "pending", expected.redeliveries + 1

    # -- the workers

    @rule(behaviour=st.sampled_from(["succeed", "fail"]))
    def work(self, behaviour: str) -> None:
        """Run the next message of the broker, if there is one, as a worker does."""
        message = self._next_message()
        if message is None:
            return
        option = message.options["outbox"]
        expected = self.model.get(option["delivery"])
        done = expected is not None and expected.state in ("succeeded", "discarded")
        skipped = self._process(MessageProxy(message), behaviour)
        # Only the row of a redelivered message is checked.
        assert skipped == (done and bool(option.get("earlier_messages")))
        if expected is None or skipped:
            return
        retries = message.options.get("retries", 0)
        if behaviour == "succeed":
            if expected.is_open or expected.state == "failed":
                expected.state = "succeeded"
        elif expected.is_open:
            expected.state, expected.waits_for = "failed" if retries > 1 else "pending", ""
            Delivery.objects.filter(pk=option["delivery"], state="pending").update(available_at=Now())

    # -- the operators

    @rule(pk=deliveries)
    def retry(self, pk: int) -> None:
        """Retry a delivery; this changes only failed deliveries."""
        flush()
        Delivery.objects.filter(pk=pk).retry()
        expected = self.model[pk]
        if expected.state == "failed":
            self.model[pk] = Expected(resends=expected.resends + 1)

    @rule(pk=consumes(deliveries))
    def discard(self, pk: int) -> None:
        """Discard a delivery; this changes only failed and pending deliveries."""
        flush()
        Delivery.objects.filter(pk=pk).discard("not needed")
        if self.model[pk].state in ("failed", "pending"):
            self.model[pk].state = "discarded"

    @rule()
    def pause_or_resume(self) -> None:
        """Pause the handler, or resume it."""
        self.paused = not self.paused
        if self.paused:
            PausedHandler.objects.pause("model")
            return
        PausedHandler.objects.resume("model")
        for expected in self.model.values():
            if expected.state == "pending":
                expected.waits_for = ""

    # -- the comparison

    @invariant()
    def table_equals_model(self) -> None:
        """Compare every row."""
        flush()
        rows = Delivery.objects.values_list("pk", "state", "attempts", "redeliveries", "resends")
        found = {pk: tuple(rest) for pk, *rest in rows}
        assert found == {
            pk: (expected.state, expected.attempts, expected.redeliveries, expected.resends)
            for pk, expected in self.model.items()
        }
        waiting = set(Delivery.objects.pending().exclude(waits_for="").values_list("pk", flat=True))
        assert waiting == {pk for pk, one in self.model.items() if one.state == "pending" and one.waits_for}

    def _due(self) -> list[Expected]:
        return [one for one in self.model.values() if one.state == "pending" and not one.waits_for]

    def _next_message(self) -> dramatiq.Message | None:
        for name in (QUEUE, f"{QUEUE}.DQ"):
            queue = self.broker.queues[name]
            if not queue.empty():
                message = dramatiq.Message.decode(queue.get())
                queue.task_done()
                message.options.pop("eta", None)
                return message.copy(queue_name=QUEUE)
        return None

    def _process(self, message: MessageProxy, behaviour: str) -> bool:
        """Run a message through all middleware; return whether it was skipped."""
        self.behaviour = behaviour
        try:
            self.broker.emit_before("process_message", message)
            self.broker.get_actor(message.actor_name)(*message.args, **message.kwargs)
            self.broker.emit_after("process_message", message, result=None)
        except SkipMessage:
            self.broker.emit_after("skip_message", message)
            return True
        except Boom as error:
            self.broker.emit_after("process_message", message, exception=error)
        assert confirmations.flush()
        return False


def test_deliveries_have_the_states_of_the_model():
    run_state_machine_as_test(
        Deliveries,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

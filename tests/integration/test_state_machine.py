"""The life of deliveries against a plain-Python model of their states, in any order hypothesis thinks of."""

from __future__ import annotations

from dataclasses import dataclass

import dramatiq
import pytest
from django.db import transaction
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
from relay.claim import Claim
from relay.dispatch import Dispatcher
from tests.helpers import flush, publish, relay_all
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

MAX_REDELIVERIES = 1


class Boom(Exception):
    """What stands for a crash, a rollback, or a handler's error."""


@dataclass
class Expected:
    """A delivery as the model has it."""

    status: str = "pending"
    held: str = ""
    attempts: int = 0
    redeliveries: int = 0

    @property
    def is_open(self) -> bool:
        """Return whether its handler may still have to run."""
        return self.status in ("pending", "dispatched")


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

        @outbox.handler(
            "model.*", name="model", queue_name=QUEUE, max_retries=1, min_backoff=1, max_backoff=1
        )
        def model(event: outbox.ReceivedEvent) -> None:
            if self.behaviour == "fail":
                raise Boom

    def teardown(self) -> None:
        """Leave nothing behind."""
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
        """Dispatch all that is due."""
        relay_all()
        for expected in self._due():
            if self.paused:
                expected.held = "pause"
            else:
                expected.status, expected.attempts = "dispatched", expected.attempts + 1

    @rule()
    def crash_between_send_and_commit(self) -> None:
        """Send a batch to the broker, and die before the commit."""
        with pytest.raises(Boom), transaction.atomic():
            dispatcher = Dispatcher(database="default")
            dispatcher.paused = PausedHandler.objects.names()
            rows = Claim(database="default", limit=100).take().rows
            if rows:
                dispatcher.send(rows, timeout_s=5)
            raise Boom

    @rule()
    def dispatch_in_vain(self) -> None:
        """Dispatch, and hear nothing until time runs out."""
        self.relay()
        self.time_runs_out()

    @rule()
    def time_runs_out(self) -> None:
        """Let every confirmation be overdue, and redeliver."""
        flush()
        Delivery.objects.unconfirmed().update(confirm_by="2020-01-01T00:00:00Z")
        Delivery.objects.redeliver_overdue(limit=1000, max_redeliveries=MAX_REDELIVERIES)
        for expected in self.model.values():
            if expected.status != "dispatched":
                continue
            if expected.redeliveries >= MAX_REDELIVERIES:
                expected.status = "failed"
            else:
                expected.status, expected.redeliveries = "pending", expected.redeliveries + 1

    # -- the workers

    @rule(behaviour=st.sampled_from(["succeed", "fail"]))
    def work(self, behaviour: str) -> None:
        """Run the next message of the broker, if there is one, as a worker does."""
        message = self._next_message()
        if message is None:
            return
        option = message.options["outbox"]
        expected = self.model.get(option["delivery"])
        done = expected is not None and expected.status in ("succeeded", "discarded")
        skipped = self._process(MessageProxy(message), behaviour)
        # Only a copy that the relay has sent again is looked up.
        assert skipped == (done and bool(option.get("redelivered")))
        if expected is None or skipped:
            return
        retries = message.options.get("retries", 0)
        if behaviour == "succeed":
            if expected.is_open or expected.status == "failed":
                expected.status = "succeeded"
        elif expected.is_open and retries > 1:
            expected.status = "failed"

    # -- the operators

    @rule(pk=deliveries)
    def retry(self, pk: int) -> None:
        """Retry a delivery, which does nothing unless it has failed."""
        flush()
        Delivery.objects.filter(pk=pk).retry()
        expected = self.model[pk]
        if expected.status == "failed":
            self.model[pk] = Expected(redeliveries=1)

    @rule(pk=consumes(deliveries))
    def discard(self, pk: int) -> None:
        """Discard a delivery, which does nothing unless it has failed or waits."""
        flush()
        Delivery.objects.filter(pk=pk).discard("given up")
        if self.model[pk].status in ("failed", "pending"):
            self.model[pk].status = "discarded"

    @rule()
    def pause_or_resume(self) -> None:
        """Pause the handler, or resume it."""
        self.paused = not self.paused
        if self.paused:
            PausedHandler.objects.pause("model")
            return
        PausedHandler.objects.resume("model")
        for expected in self.model.values():
            if expected.status == "pending":
                expected.held = ""

    # -- the truth

    @invariant()
    def the_table_is_as_the_model_says(self) -> None:
        """Compare every row."""
        flush()
        rows = Delivery.objects.values_list("pk", "status", "attempts", "redeliveries")
        found = {pk: tuple(rest) for pk, *rest in rows}
        assert found == {
            pk: (expected.status, expected.attempts, expected.redeliveries)
            for pk, expected in self.model.items()
        }
        held = set(Delivery.objects.pending().exclude(held="").values_list("pk", flat=True))
        assert held == {pk for pk, one in self.model.items() if one.status == "pending" and one.held}

    def _due(self) -> list[Expected]:
        return [one for one in self.model.values() if one.status == "pending" and not one.held]

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


def test_deliveries_live_as_the_model_says():
    run_state_machine_as_test(
        Deliveries,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

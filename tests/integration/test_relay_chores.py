"""What a relay's chores give back goes out at once, and they are done in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from outbox.models import Delivery
from relay.dispatch import Dispatcher
from relay.housekeeping import Housekeeping
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.factories import make_delivery
from tests.helpers import flush
from tests.listening import clear_broker

pytestmark = pytest.mark.django_db(transaction=True)


class Waits(Stop):
    """Notes the waits instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        self.waits.append(timeout_s)
        if len(self.waits) == 50:
            self.request()
        return False


@pytest.fixture(autouse=True)
def clean_broker() -> Iterator[None]:
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_what_the_chores_give_back_goes_out_before_the_relay_waits_again(
    monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    make_delivery(handler="record", status="dispatched")
    ticks: list[int] = []
    sends: list[int] = []
    with Waits() as stop:

        def redeliver(housekeeping: Housekeeping) -> int:
            ticks.append(len(stop.waits))
            if len(ticks) == when:
                Delivery.objects.update(confirm_by=Now() - timedelta(seconds=1))
            return look(housekeeping)

        def send(dispatcher: Dispatcher, *args: Any, **options: Any) -> Any:
            sends.append(len(stop.waits))
            stop.request()
            return dispatch(dispatcher, *args, **options)

        dispatch, look = Dispatcher.send, Housekeeping.redeliver
        monkeypatch.setattr(Housekeeping, "redeliver", redeliver)
        # At every tick.
        monkeypatch.setattr("relay.housekeeping.SHORTEST_REDELIVER_INTERVAL_S", 0.0)
        monkeypatch.setattr("relay.housekeeping.REDELIVER_INTERVAL_S", 0.0)
        monkeypatch.setattr("relay.housekeeping.WALK_SHARE", 1e9)
        monkeypatch.setattr(Dispatcher, "send", send)
        options = RelayOptions(database="default", listen=False, poll_interval=timedelta(hours=1))
        Relay(options, stop=stop).run()
    assert sends == [ticks[when - 1]]


def test_a_relay_that_seldom_polls_looks_for_what_is_overdue_as_often_as_it_should(settings: Any) -> None:
    settings.OUTBOX = {"CONFIRM_TIMEOUT": 4}
    with Waits() as stop:
        options = RelayOptions(database="default", listen=False, poll_interval=timedelta(hours=1))
        Relay(options, stop=stop).run()
    assert max(stop.waits) <= 1

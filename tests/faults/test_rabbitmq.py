"""Nothing is lost, no effect happens twice and lanes keep their order, whatever breaks: with RabbitMQ."""

from __future__ import annotations

import pytest

from tests.faults.running import check
from tests.faults.scenarios import Scenario, scenarios_with
from tests.faults.stage import Stage

pytestmark = [pytest.mark.postgres, pytest.mark.rabbitmq, pytest.mark.slow]


@pytest.mark.parametrize("stage", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("scenario", scenarios_with("rabbitmq"), ids=lambda one: one.name.replace(" ", "-"))
def test_nothing_is_lost_and_no_effect_happens_twice(stage: Stage, scenario: Scenario) -> None:
    check(scenario, stage)

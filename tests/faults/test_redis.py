"""With Redis, no fault loses an event, repeats a transactional effect or breaks an order."""

from __future__ import annotations

import pytest

from .running import check
from .scenarios import Scenario, scenarios_with
from .stage import Stage

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]


@pytest.mark.parametrize("stage", ["redis"], indirect=True)
@pytest.mark.parametrize("scenario", scenarios_with("redis"), ids=lambda one: one.name.replace(" ", "-"))
def test_nothing_is_lost_and_no_effect_happens_twice(stage: Stage, scenario: Scenario) -> None:
    check(scenario, stage)

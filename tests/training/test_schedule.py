from __future__ import annotations

import pytest

from mnist_ce.config import ScheduleConfig
from mnist_ce.training.trainer import learning_rates


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (ScheduleConfig(), 0.1, 0.1),
        (ScheduleConfig(kind="one-cycle"), 0.1 / 25, 0.1 / 25 / 1e4),
        (ScheduleConfig(kind="one-cycle", anneal="linear"), 0.1 / 25, 0.1 / 25 / 1e4),
        (ScheduleConfig(kind="cosine", final_fraction=0.1), 0.1, 0.01),
        (ScheduleConfig(kind="step", step_epochs=2, factor=0.5), 0.1, 0.05),
    ],
)
def test_schedules(schedule: ScheduleConfig, first: float, last: float) -> None:
    rate = learning_rates(schedule, 0.1, num_epochs=4, steps_per_epoch=25)
    rates = [rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last, rel=0.02)
    assert max(rates) == pytest.approx(0.1)
    if schedule.kind == "step":
        assert rates[49] == 0.1
        assert rates[50] == pytest.approx(0.05)

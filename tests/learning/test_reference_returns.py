"""Tuned examples against the reference returns, three seeds each, and the negative control."""

import numpy as np
import pytest

from benchmarks.learning import (
    HEADER,
    MARKER,
    REFERENCES,
    Outcome,
    config_of,
    negative_control,
    renewed,
    rows,
    run,
)

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]


def test_quick_cartpole_ppo_balances_for_all_steps() -> None:
    outcome = run(config_of("cartpole-ppo", seed=0), example="cartpole-ppo")
    assert outcome.untrained < 150
    assert outcome.trained >= 475


@pytest.mark.parametrize("example", REFERENCES)
def test_the_example_reaches_its_reference_return(example: str) -> None:
    outcomes = [run(config_of(example, seed=seed), example=example) for seed in range(3)]
    bar = REFERENCES[example][1]
    assert np.mean([o.trained for o in outcomes]) >= bar
    assert np.mean([o.untrained for o in outcomes]) < bar


def test_plain_ppo_fails_on_mountain_car() -> None:
    outcome = run(negative_control(0), example="mountaincar-ppo-plain")
    assert outcome.trained <= -195


def test_renewing_one_row_keeps_the_others() -> None:
    old = "| cartpole-ppo | 500 | 500.0 | 500.0 | 9.0 | 1,000 | 2 | 2026-01-01 |"
    stale = "| cartpole-dqn | 500 | 10.0 | 10.0 | 9.0 | 1,000 | 2 | 2026-01-01 |"
    page = "\n".join(["# Learning", MARKER, "", *HEADER, old, stale, ""])
    outcome = Outcome("cartpole-dqn", 0, untrained=9.0, trained=500.0, env_steps=5000, wall_s=3.0)
    new = rows([outcome], measured="2026-01-02")
    lines = renewed(page, new).splitlines()
    fresh = "| cartpole-dqn | 500 | 500.0 | 500.0 | 9.0 | 5,000 | 3 | 2026-01-02 |"
    assert lines == ["# Learning", MARKER, "", *HEADER, old, fresh]


def test_a_page_without_a_marker_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="has no <!-- measured -->"):
        renewed("# Learning", {})

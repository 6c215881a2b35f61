"""Tuned examples against the reference returns, three seeds each, and the negative control."""

import numpy as np
import pytest

from benchmarks.learning import REFERENCES, config_of, negative_control, run

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

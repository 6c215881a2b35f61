"""Resources that cannot fit are refused with the numbers, before anything waits for them."""

from typing import Any

import pytest

from pipelines.config import OnPolicyConfig
from pipelines.config_errors import ConfigError
from pipelines.resource_check import check_resources


def config(**values: Any) -> OnPolicyConfig:
    return OnPolicyConfig(algo="plain", env="E-v0").with_overrides(
        {key.replace("__", "."): value for key, value in values.items()}
    )


def refused(
    cpus: float, gpus: float, *, custom: dict[str, float] | None = None, **values: Any
) -> str:
    with pytest.raises(ConfigError) as caught:
        check_resources(config(**values), cpus=cpus, gpus=gpus, custom=custom)
    return str(caught.value)


def test_what_fits_exactly_is_taken_and_a_driver_learner_reserves_nothing() -> None:
    check_resources(config(rollout__num_workers=2), cpus=2, gpus=0)
    check_resources(config(rollout__num_workers=3, resources__rollout_cpus=0.1), cpus=0.3, gpus=0)
    check_resources(config(resources__learner_gpus=0.2), cpus=1, gpus=1)


def test_too_many_cpus_are_refused_with_the_numbers_and_the_fix() -> None:
    assert refused(2, 0, rollout__num_workers=8) == (
        "resources: rollout.num_workers x resources.rollout_cpus = 8 x 1 makes 8 CPUs, "
        "and there are 2; set rollout.num_workers=2, or resources.rollout_cpus lower"
    )


def test_learner_workers_reserve_too() -> None:
    message = refused(4, 0, rollout__num_workers=4, learner__num_workers=2)
    assert "4 x 1 plus learner.num_workers x resources.learner_cpus = 2 x 1 makes 6 CPUs" in message
    assert "set rollout.num_workers=2" in message


def test_when_no_worker_fits_the_share_is_to_be_smaller() -> None:
    message = refused(0.5, 0, resources__rollout_cpus=1.0)
    assert message.endswith("set resources.rollout_cpus=0.5")


def test_gpus_that_are_not_there_are_refused() -> None:
    assert refused(8, 0, resources__rollout_gpus=0.5, rollout__num_workers=2) == (
        "resources: rollout.num_workers x resources.rollout_gpus = 2 x 0.5 makes 1 GPUs, "
        "and there are 0; set resources.rollout_gpus=0 or add machines (--ray-address)"
    )
    message = refused(8, 0, resources__learner_gpus=1)
    assert "resources.learner_gpus is 1, and there are 0 GPUs; set it to 0" in message
    assert "set learner.device=auto" in refused(8, 0, learner__device="cuda")
    assert "add machines" in refused(8, 1, learner__num_workers=1, resources__learner_gpus=2)


def test_a_part_of_several_gpus_is_refused() -> None:
    message = refused(8, 4, resources__rollout_gpus=1.5)
    assert "got 1.5; Ray gives a part of one GPU or several whole ones; set 1 or 2" in message


def test_custom_resources_are_checked_where_they_are_known() -> None:
    check_resources(config(resources__rollout_custom={"tpu": 1}), cpus=1, gpus=0)
    message = refused(1, 0, custom={"tpu": 0.5}, resources__rollout_custom={"tpu": 1})
    assert "1 x 1 makes 1 tpu, and there are 0.5" in message


def test_everything_is_said_at_once() -> None:
    message = refused(1, 0, rollout__num_workers=2, learner__device="cuda")
    assert len(message.splitlines()) == 2

"""Configurations are values: frozen, closed, JSON both ways."""

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from pipelines.config import AlgorithmConfig, OnPolicyConfig, OptimConfig
from pipelines.config_base import Group
from pipelines.config_schema import fields_of


class ToyConfig(OnPolicyConfig):
    algo: Literal["toy"] = "toy"
    optim: OptimConfig = OptimConfig(lr=((0, 1e-3), (1_000_000, 0.0)))


def toy(**values: Any) -> ToyConfig:
    return ToyConfig(**{"env": "CartPole-v1", **values})


def groups() -> list[type[Group]]:
    found = [f.annotation for f in AlgorithmConfig.model_fields.values()]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Group)]


def test_a_configuration_survives_json() -> None:
    config = toy(
        env={"id": "m:f", "kwargs": {"a": [1, {"b": None}]}},
        model={"hidden": [8], "conv": [[1, 2, 3]]},
        connectors={"obs": [{"kind": "flatten"}]},
        stop={"env_steps": 10, "time_s": 1.5},
    )
    assert ToyConfig.model_validate_json(config.model_dump_json()) == config
    assert ToyConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_env_may_be_its_id() -> None:
    assert toy(env="E-v0") == toy(env={"id": "E-v0"})


def test_a_configuration_does_not_change() -> None:
    config = toy()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0


@pytest.mark.parametrize("group", groups())
def test_unknown_keys_are_refused_in_every_group(group: type[Group]) -> None:
    with pytest.raises(ValidationError) as caught:
        group(no_such_key=1)
    assert "extra_forbidden" in {error["type"] for error in caught.value.errors()}


def test_all_errors_come_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        toy(gamma=2, rollout={"num_envs": 0, "x": 1}, optim={"eps": 0}, seed=-1)
    places = {".".join(map(str, error["loc"])) for error in caught.value.errors()}
    assert places == {"gamma", "rollout.num_envs", "rollout.x", "optim.eps", "seed"}


@pytest.mark.parametrize("points", [[], [[5, 1.0], [5, 2.0]], [[5, 1.0], [3, 2.0]]])
def test_schedules_grow(points: list[list[float]]) -> None:
    with pytest.raises(ValidationError, match="growing env_steps"):
        toy(entropy_coef=points)


def test_numbers_are_finite() -> None:
    with pytest.raises(ValidationError, match="finite"):
        toy(value_coef=float("inf"))


def test_fragments_make_whole_versions() -> None:
    rollout = {"num_workers": 2, "num_envs": 4, "fragment_steps": 8}
    assert toy(rollout=rollout).fragments_per_version == 2
    assert toy(rollout=rollout, train_rows=192).fragments_per_version == 6
    with pytest.raises(ValidationError, match=r"train_rows=100 is no multiple .* = 64"):
        toy(rollout=rollout, train_rows=100)
    with pytest.raises(ValidationError, match=r"must be a multiple of learner.num_workers=3"):
        toy(rollout=rollout, learner={"num_workers": 3})


def test_a_custom_model_needs_its_factory() -> None:
    with pytest.raises(ValidationError, match="go together"):
        toy(model={"kind": "custom"})
    with pytest.raises(ValidationError, match="go together"):
        toy(model={"factory": "m:f"})


def test_the_schema_knows_every_dotted_path_with_the_algorithms_defaults() -> None:
    fields = fields_of(ToyConfig)
    assert fields["optim.lr"].default == [[0, 1e-3], [1_000_000, 0.0]]
    assert fields["optim.lr"].expects == "number, or points [[env_steps, value], ...]"
    assert fields["env"].is_group
    assert fields["env"].required
    assert fields["env.kwargs"].is_mapping
    assert fields["model.activation"].choices == ("tanh", "relu", "silu")
    assert fields["train_rows"].expects == "integer >= 1 or null"
    assert fields["resources.rollout_custom"].expects == "mapping to number"

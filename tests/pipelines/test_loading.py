"""Layers over defaults, what is wrong with them, and RLlib's names."""

import pickle
import subprocess
import sys
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipelines.config import OnPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import Group, Schedule
from pipelines.loading import (
    ConfigError,
    Layer,
    build_config,
    config_class,
    json_layer,
    parse_stop,
    set_layers,
    with_overrides,
)


class Noise(Group):
    """Gaussian noise on actions."""

    kind: Literal["noise"] = "noise"
    """Which exploration."""
    std: float = Field(default=0.1, gt=0)
    """Of the action's range."""


class Epsilon(Group):
    """Random actions."""

    kind: Literal["epsilon"] = "epsilon"
    """Which exploration."""
    start: Schedule = 1.0
    """Share of random actions."""


class ToyConfig(OnPolicyConfig):
    """An algorithm with what the real ones have, and a group of two kinds."""

    algo: Literal["toy"] = "toy"
    clip_eps: Schedule = 0.2
    """As PPO's."""
    rollout: RolloutConfig = RolloutConfig(num_envs=4, fragment_steps=5)
    optim: OptimConfig = OptimConfig(kind="rmsprop", lr=7e-4)
    tags: tuple[str, ...] = ()
    """A list of strings."""
    explore: Annotated[Noise | Epsilon, Field(discriminator="kind")] = Noise()
    """How actions vary."""


ALGORITHMS = {"toy": (__name__, "ToyConfig"), "tiny": (__name__, "ToyConfig")}


def build(*layers: Layer, env: str | None = "CartPole-v1") -> Any:
    given = [Layer("--env", {"env": env})] if env else []
    return build_config("toy", [*layers, *given], algorithms=ALGORITHMS)


def errors(*layers: Layer, env: str | None = "CartPole-v1") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(*layers, env=env)
    return str(caught.value).splitlines()


def error(*layers: Layer, env: str | None = "CartPole-v1") -> str:
    lines = errors(*layers, env=env)
    assert len(lines) == 1, lines
    return lines[0]


def sets(*settings: str) -> list[Layer]:
    return set_layers(settings)


def test_later_layers_win_and_the_algorithms_defaults_stay_beneath() -> None:
    config = build(
        Layer("F.yaml", {"optim": {"lr": 1.0, "eps": 0.1}, "seed": 1}),
        json_layer('{"optim.lr": 2.0, "seed": 2}'),
        *sets("optim.lr=3"),
    )
    assert (config.optim.lr, config.optim.eps, config.seed) == (3.0, 0.1, 2)
    assert (config.optim.kind, config.rollout.fragment_steps) == ("rmsprop", 5)


def test_nested_and_dotted_keys_mix() -> None:
    config = build(Layer("", {"rollout": {"num_envs": 2}, "rollout.num_workers": 3}))
    assert (config.rollout.num_envs, config.rollout.num_workers) == (2, 3)


def test_one_key_nested_and_dotted_in_one_place_is_given_twice() -> None:
    layer = Layer("F.yaml", {"seed": 1, "optim": {"lr": 1}, "optim.lr": 2}, {"optim.lr": 4})
    assert error(layer) == "F.yaml:4: optim.lr: given twice; keep one"


def test_a_string_for_env_sets_its_id_and_leaves_the_rest() -> None:
    config = build(*sets("env.max_episode_steps=20", "env.kwargs.a=1"), env="Acrobot-v1")
    assert config.env.model_dump() == {
        "id": "Acrobot-v1",
        "kwargs": {"a": 1},
        "vectorization": "auto",
        "max_episode_steps": 20,
    }


def test_mappings_merge_key_by_key_and_lists_are_replaced() -> None:
    config = build(
        Layer("", {"env.kwargs": {"a": {"x": 1}, "b": [1]}, "model.hidden": [1, 2]}),
        Layer("", {"env": {"kwargs": {"a": {"y": 2}}}, "env.kwargs.b": [2], "model.hidden": [3]}),
    )
    assert config.env.kwargs == {"a": {"x": 1, "y": 2}, "b": [2]}
    assert config.model.hidden == (3,)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr=[[0, 1e-3], [100, 0]]", "optim.lr", ((0, 1e-3), (100, 0.0))),
        ("optim.max_grad_norm=None", "optim.max_grad_norm", None),
        ("train_rows=null", "train_rows", None),
        ("stop.env_steps=1e6", "stop.env_steps", 1_000_000),
        ("model.hidden=[32]", "model.hidden", (32,)),
        ("model.activation=relu", "model.activation", "relu"),
        ("learner.compile=true", "learner.compile", True),
        ("learner.compile=False", "learner.compile", False),
        ("env.id=1e-3", "env.id", "1e-3"),
        ("env.kwargs.x=no", "env.kwargs", {"x": "no"}),
        ("env.kwargs.x=4x4", "env.kwargs", {"x": "4x4"}),
        ("env.kwargs.x=#fff", "env.kwargs", {"x": "#fff"}),
        ("env.kwargs.x='1'", "env.kwargs", {"x": "1"}),
        ("env.kwargs.x=a=b: c", "env.kwargs", {"x": "a=b: c"}),
        ("env.kwargs.x.y={a: [1]}", "env.kwargs", {"x": {"y": {"a": [1]}}}),
    ],
)
def test_set_reads_a_value_as_its_field_does(text: str, path: str, value: object) -> None:
    env = None if path == "env.id" else "E-v0"
    config = build(*sets(text), env=env).model_dump()
    for part in path.split("."):
        config = config[part]
    assert config == value


def test_of_two_equal_sets_the_later_wins() -> None:
    assert build(*sets("seed=1", "seed=2")).seed == 2


def test_set_without_equals_sign_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'--set: got "seed", expected key=value; such as --set'):
        sets("seed")


def test_all_that_is_wrong_is_said_at_once_with_where_it_stands() -> None:
    layer = Layer(
        "F.yaml",
        {"rollout": {"num_workrs": 4, "num_envs": 0}, "optim.kind": "adm", "gamma": 1.5},
        {"rollout": 2, "rollout.num_workrs": 3, "rollout.num_envs": 4, "gamma": 6},
    )
    assert errors(layer, *sets("seed=x"), env=None) == [
        "F.yaml:3: rollout.num_workrs: unknown key; did you mean `rollout.num_workers`? "
        "`rollout` has num_workers, num_envs, fragment_steps, batch_mode, max_policy_lag",
        '--set: seed: got "x", expected integer >= 0',
        "env: missing; name one: --env CartPole-v1, or env: CartPole-v1 in the file",
        "F.yaml:6: gamma: got 1.5, expected number from 0 to 1",
        "F.yaml:4: rollout.num_envs: got 0, expected integer >= 1",
        'F.yaml: optim.kind: got "adm", expected one of adam, adamw, rmsprop, sgd; '
        "did you mean adam?",
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("num_env", "did you mean `rollout.num_envs` or `evaluation.num_envs`?"),
        ("optim.learning_rate", "`optim` has kind, lr, eps,"),
        ("Optim.LR", "did you mean `optim.lr`?"),
        ("zzz", "the top level has algo, env, seed,"),
        ("optim.zzz.qqq", "`optim` has kind, lr,"),
        ("optim.eps.x", "`optim.eps` takes number > 0"),
        ("", "the top level has"),
        ("optim.", "`optim` has"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant_and_what_there_is(
    key: str, meant: str
) -> None:
    message = error(Layer("", {key: 1}))
    assert "unknown key" in message
    assert meant in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollout.num_envs": "16"}, 'got "16", expected integer >= 1; write the number without q'),
        ({"rollout.num_envs": True}, "got true, expected integer >= 1"),
        ({"rollout.num_envs": 1.5}, "got 1.5, expected integer >= 1"),
        ({"learner.compile": "no"}, 'got "no", expected true or false; write true or false'),
        ({"learner.compile": 1}, "got 1, expected true or false"),
        ({"optim.lr": "1e-3"}, 'got "1e-3", expected number, or points [[env_steps, value], ...]'),
        ({"optim.lr": [[0, "a"]]}, "expected number, or points [[env_steps, value], ...]"),
        ({"optim.lr": [[5, 1], [3, 1]]}, "a schedule needs points [env_steps, value] with growing"),
        ({"optim.lr": []}, "a schedule needs points"),
        ({"optim.betas": [0.9]}, "[number from 0 to 1, number from 0 to 1]; such as [0.9, 0.999]"),
        ({"model.hidden": 64}, "got 64, expected list of integer >= 1; such as [64, 64]"),
        ({"model.hidden": [64, True]}, "got [64, true], expected list of integer >= 1"),
        ({"tags": "m:C"}, 'expected list of string; write ["m:C"]'),
        ({"optim": 3}, "got 3, expected a group; its keys are kind, lr, eps,"),
        ({"optim": None}, "got null, expected a group"),
        ({"env.kwargs": [1]}, "got [1], expected mapping"),
        ({"resources.rollout_custom": {"tpu": "1"}}, "expected mapping to number"),
        ({"gamma": float("nan")}, "got NaN, expected number from 0 to 1"),
        ({"explore": {"kind": "epsilom"}}, "expected one of noise, epsilon; did you mean epsilon?"),
        ({"explore": {"start": 1.0}}, "explore.start"),
        ({"algo": "ppo"}, 'algo: got "ppo", expected toy'),
        ({"env.id": ""}, 'env.id: got "", expected string'),
    ],
)
def test_a_value_that_does_not_fit_is_answered_with_what_would(
    values: dict[str, Any], message: str
) -> None:
    assert message in error(Layer("", values), env=None if "env.id" in values else "E-v0")


def test_a_group_of_kinds_takes_the_other_kinds_defaults() -> None:
    assert build(*sets("explore.kind=epsilon")).explore == Epsilon()
    assert build(*sets("explore.start=0.5", "explore.kind=epsilon")).explore.start == 0.5
    config = build(*sets("explore.kind=epsilon"))
    assert with_overrides(config, {"explore": {"std": 0.2, "kind": "noise"}}).explore.std == 0.2


def test_a_rule_between_fields_is_reported_where_one_of_them_was_given() -> None:
    message = error(Layer("F.yaml", {"train_rows": 33}, {"train_rows": 2}))
    assert message.startswith("F.yaml:2: train_rows: train_rows=33 is no multiple of rollout.num_w")
    message = error(Layer("F.yaml", {"model": {"kind": "custom"}}, {"model": 5, "model.kind": 6}))
    assert message.startswith("F.yaml:5: model: kind 'custom' and factory go together")


def test_messages_print_nothing_that_a_terminal_would_obey() -> None:
    message = error(Layer("", {"\x1b[31m" + "k" * 500: "\x1b]0;x\x07" + "v" * 500}))
    assert message.isprintable()
    assert len(message) < 600


def test_unknown_algorithm_is_answered_with_a_guess_and_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config("Toy", [], algorithms=ALGORITHMS)
    assert str(caught.value) == (
        'algo: unknown algorithm "Toy"; did you mean toy? there are tiny, toy'
    )
    with pytest.raises(ConfigError, match=r'unknown algorithm "impala"; there are tiny, toy'):
        build_config("impala", [], algorithms=ALGORITHMS)


def test_the_packages_algorithms_are_found() -> None:
    assert config_class("ppo").__name__ == "PPOConfig"


def test_overrides_give_a_validated_copy() -> None:
    config = build()
    other = config.with_overrides({"optim.lr": 1e-3, "rollout": {"num_envs": 7}})
    assert (other.optim.lr, other.rollout.num_envs, other.rollout.fragment_steps) == (1e-3, 7, 5)
    assert (config.optim.lr, config.rollout.num_envs) == (7e-4, 4)
    assert type(other) is ToyConfig
    assert with_overrides(config, {}) == config


def test_overrides_do_not_share_mappings_with_the_original() -> None:
    config = build(*sets("env.kwargs={a: {b: 1}}"))
    other = config.with_overrides({"env.kwargs.a.b": 2})
    assert (config.env.kwargs, other.env.kwargs) == ({"a": {"b": 1}}, {"a": {"b": 2}})
    mine = {"x": {"y": 1}}
    third = config.with_overrides({"env.kwargs": mine})
    mine["x"]["y"] = 9
    assert third.env.kwargs == {"a": {"b": 1}, "x": {"y": 1}}


def test_overrides_take_groups_and_numpy_scalars() -> None:
    config = build().with_overrides(
        {"optim": OptimConfig(lr=0.5), "seed": np.int64(3), "env.kwargs.p": np.float32(0.5)}
    )
    assert (config.optim.lr, config.optim.kind, config.seed) == (0.5, "adam", 3)
    assert config.env.kwargs == {"p": 0.5}
    assert type(config.env.kwargs["p"]) is float


def test_overrides_name_the_path_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        build().with_overrides({"rollout.num_env": 3, "train_rows": 7})
    assert str(caught.value).splitlines()[0].startswith("rollout.num_env: unknown key; did you mea")
    assert str(caught.value).splitlines()[1].startswith("train_rows=7 is no multiple")


PRINTABLE = st.text(max_size=20).filter(str.isprintable)


@given(lr=st.floats(1e-9, 1.0), envs=st.integers(1, 10**6), text=PRINTABLE)
def test_what_set_writes_is_what_the_configuration_says(lr: float, envs: int, text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    config = build(*sets(f"optim.lr={lr!r}", f"rollout.num_envs={envs}", f"env.kwargs.k={quoted}"))
    assert (config.optim.lr, config.rollout.num_envs) == (lr, envs)
    assert config.env.kwargs["k"] == text


@pytest.mark.parametrize(
    ("stop", "ours"),
    [
        ('{"training_iteration": 3}', {"training_iteration": 3}),
        ('{"env_runners/episode_return_mean": 450}', {"episode_return_mean": 450.0}),
        ('{"env_runners": {"episode_return_mean": 450}}', {"episode_return_mean": 450.0}),
        ({"episode_reward_mean": -100, "timesteps_total": 1e5}, None),
        ({"num_env_steps_sampled_lifetime": 10}, {"env_steps": 10}),
        ({"time_total_s": 1.5}, {"time_s": 1.5}),
        ("{}", {}),
    ],
)
def test_stop_understands_rllibs_criteria(stop: Any, ours: dict[str, float] | None) -> None:
    wanted = {"episode_return_mean": -100.0, "env_steps": 100_000} if ours is None else ours
    assert parse_stop(stop) == wanted


def test_stop_in_a_layer_understands_them_too() -> None:
    config = build(Layer("F.yaml", {"stop": {"episode_reward_mean": 5}}), *sets("stop.time_s=9"))
    assert (config.stop.episode_return_mean, config.stop.time_s) == (5.0, 9.0)
    assert build(*sets("stop.env_runners/episode_return_mean=7")).stop.episode_return_mean == 7.0


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ('{"episodes": 3}', "`stop` has training_iteration, env_steps"),
        ('{"env_step": 3}', "did you mean `stop.env_steps`?"),
        ('{"env_steps": 3, "timesteps_total": 4}', "stop.env_steps: given twice; keep one"),
        ('{"env_steps": 3, "env_steps": 4}', "--stop:1: `env_steps` is given twice"),
        ('{"env_steps": "3"}', 'got "3", expected integer >= 1 or null; write the number without'),
        ('{"env_steps": 0}', "got 0, expected integer >= 1"),
        ("{'env_steps': 3}", "--stop:1: Expecting property name enclosed in double quotes"),
        ("3", "--stop: got 3, expected an object"),
        ('{"env_runners/num_episodes": 3}', "unknown key"),
    ],
)
def test_a_stop_criterion_that_cannot_be_is_refused(stop: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_stop(stop)
    assert message in str(caught.value)


def test_an_error_survives_pickling() -> None:
    with pytest.raises(ConfigError) as caught:
        build(*sets("seed=-1"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


def test_reading_a_configuration_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, pipelines.loading, pipelines.resource_check, pipelines.config_docs\n"
        "from pipelines.loading import Layer, with_overrides, parse_stop\n"
        "from pipelines.config import OnPolicyConfig\n"
        "config = OnPolicyConfig(algo='x', env='E-v0').with_overrides({'seed': 1})\n"
        "heavy = {'torch', 'ray', 'gymnasium', 'deltalake', 'urllib.request'} & set(sys.modules)\n"
        "assert config.seed == 1 and not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

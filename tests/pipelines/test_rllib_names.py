"""RLlib's names are answered with ours, never translated behind the user's back."""

from typing import Any

import pytest

from pipelines import ALGORITHMS
from pipelines.config_schema import fields_of
from pipelines.loading import ConfigError, build_config, config_class, json_layer
from pipelines.rllib_names import RLLIB_NAMES, RLLIB_VALUES, STOP_NAMES, rllib_answer

PPO = fields_of(config_class("ppo"))
ANY = {path for algo in ALGORITHMS for path in fields_of(config_class(algo))}
"""Settings that some algorithm has."""


def answer(text: str, algo: str = "ppo") -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(algo, [json_layer(text), json_layer('{"env": "E-v0"}', name="--env")])
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"num_workers": 8}', "RLlib's name (got 8); write rollout.num_workers=8"),
        ('{"num_workers": 0}', "write rollout.num_workers=0"),
        ('{"num_env_runners": 2}', "write rollout.num_workers=2"),
        ('{"num_envs_per_worker": 4}', "write rollout.num_envs=4"),
        ('{"rollout.num_envs_per_env_runner": 4}', "write rollout.num_envs=4"),
        ('{"rollout_fragment_length": 200}', "write rollout.fragment_steps=200 (of each sub-env"),
        ('{"batch_mode": "truncate_episodes"}', "write rollout.batch_mode=truncate"),
        ('{"batch_mode": "complete_episodes"}', "write rollout.batch_mode=complete_episodes"),
        ('{"train_batch_size": 4000}', "write train_rows=4000 (a multiple of num_workers x num_"),
        ('{"sgd_minibatch_size": 128}', "write minibatch_rows=128"),
        ('{"num_sgd_iter": 30}', "write num_epochs=30"),
        ('{"lambda": 0.9}', "write gae_lambda=0.9"),
        ('{"clip_param": 0.3}', "write clip_eps=0.3"),
        ('{"vf_loss_coeff": 1}', "write value_coef=1"),
        ('{"lr": 0.001}', "write optim.lr=0.001"),
        ('{"lr_schedule": [[0, 0.1], [9, 0]]}', "write optim.lr=[[0, 0.1], [9, 0]]"),
        ('{"grad_clip": 40}', "write optim.max_grad_norm=40"),
        ('{"kl_coeff": 0.2}', "there is no KL penalty; target_kl ends a version's epochs early"),
        ('{"training": {"gamma": 0.9}}', "unknown key"),
        ('{"model": {"fcnet_hiddens": [256, 256]}}', "write model.hidden=[256, 256]"),
        ('{"model": {"vf_share_layers": true}}', "write model.shared=true"),
        ('{"model": {"use_lstm": true}}', "recurrent networks are not in this version"),
        ('{"framework": "tf2"}', 'got "tf2"); Millrace runs on torch only'),
        ('{"framework": "torch"}', "Millrace runs on torch only and has no such key: leave it out"),
        ('{"num_gpus": 1}', "write resources.learner_gpus=1"),
        ('{"num_gpus_per_worker": 0.2}', "write resources.rollout_gpus=0.2"),
        ('{"observation_filter": "MeanStdFilter"}', "write connectors.normalize_obs=true"),
        ('{"observation_filter": "NoFilter"}', "write connectors.normalize_obs=false"),
        ('{"clip_rewards": true}', "write connectors.clip_reward=1.0"),
        ('{"env_config": {"a": 1}}', 'write env.kwargs={"a": 1}'),
        ('{"horizon": 200}', "write env.max_episode_steps=200"),
        ('{"evaluation_interval": 5}', "write evaluation.period_iterations=5"),
        ('{"checkpoint_freq": 0}', "write checkpoint.period_iterations=null"),
        ('{"recreate_failed_workers": true}', "faults.max_worker_restarts bounds it"),
        ('{"log_level": "DEBUG"}', "say it on the command line: -v"),
        ('{"timesteps_total": 100}', "write stop.env_steps=100"),
        ('{"env_runners/episode_return_mean": 9}', "write stop.episode_return_mean=9"),
        ('{"explore": false}', "evaluation.explore decides for evaluation"),
    ],
)
def test_rllibs_name_is_answered_with_ours_and_the_value(given: str, message: str) -> None:
    assert message in answer(given)


def test_a_name_that_another_algorithm_has_is_said_to_be_missing_here() -> None:
    assert "ours is clip_eps, which this algorithm does not have" in answer(
        '{"clip_param": 0.3}', algo="a2c"
    )


@pytest.mark.parametrize("name", RLLIB_NAMES)
def test_every_name_is_answered(name: str) -> None:
    message = rllib_answer(name, 1, known=ANY)
    assert message
    # Also that every path in the table exists.
    assert "does not have" not in message


@pytest.mark.parametrize(
    ("algo", "given", "message"),
    [
        ("dqn", '{"double_q": false}', "write q.double=false"),
        ("dqn", '{"target_network_update_freq": 500}', "write target.period_updates=500 (grad"),
        ("dqn", '{"replay_buffer_config": {}}', "its keys are in replay here"),
        ("apex", '{"exploration_config": {}}', "epsilon of dqn and apex"),
        ("sac", '{"tau": 0.01}', "write target.tau=0.01"),
        ("sac", '{"initial_alpha": 0.5}', "write temperature.init=0.5"),
        ("td3", '{"twin_q": 2}', "write num_critics=2 (2 are twins)"),
        ("impala", '{"vtrace_clip_rho_threshold": 2.0}', "write rho_bar=2.0"),
        ("appo", '{"circular_buffer_num_batches": 4}', "write buffer_versions=4"),
    ],
)
def test_names_of_off_policy_algorithms_are_answered(algo: str, given: str, message: str) -> None:
    assert message in answer(given, algo=algo)


def test_our_own_names_are_not_taken_for_rllibs() -> None:
    assert [path for path in PPO if path in RLLIB_NAMES] == ["gamma", "num_epochs"]


def test_values_and_criteria_belong_to_names_there_are() -> None:
    assert set(RLLIB_VALUES) <= set(RLLIB_NAMES)
    assert {f"stop.{ours}" for ours in STOP_NAMES.values()} <= set(PPO)


def rllib_option(name: str) -> Any:
    return rllib_answer(name, None, known=PPO) or name in PPO


def test_every_option_of_rllibs_ppo_is_ours_or_answered() -> None:
    options = (
        "lr gamma train_batch_size_per_learner num_epochs minibatch_size lambda_ use_gae use_critic"
        " use_kl_loss kl_coeff kl_target vf_loss_coeff entropy_coeff clip_param vf_clip_param"
        " grad_clip grad_clip_by shuffle_batch_per_epoch num_env_runners num_envs_per_env_runner"
        " rollout_fragment_length batch_mode num_learners num_gpus_per_learner env env_config seed"
    )
    assert [name for name in options.split() if not rllib_option(name)] == []

"""RLlib's option names, of both its API stacks, and what they are called here."""

import re
from collections.abc import Container, Mapping
from typing import Any

from pipelines.config_errors import printable, shown

_NO_RECURRENCE = "recurrent networks are not in this version; stack frames with connectors.obs"
_NO_ATTENTION = "attention networks are not in this version; give a network as model.factory"
_NO_MULTI_AGENT = "several policies in one run are not in this version"
_EXPLORATION = (
    "how to explore is the algorithm's: epsilon of dqn and apex, noise of td3, entropy_coef and "
    "sampling of the others"
)
_REPLAY = "its keys are in replay here: replay.capacity_rows, replay.prioritized, replay.alpha"
_RESTARTS = "a failed rollout worker is always restarted; faults.max_worker_restarts bounds it"
_CONNECTOR = "an observation connector does that: connectors.obs lists them"
_LAKE = "traces are read from and written to the lake; see docs/lake.md"
_ITERATION = "an iteration is one version: train_rows rows"

RLLIB_NAMES: dict[str, str] = {
    # Rollouts
    "num_workers": "rollout.num_workers",
    "num_rollout_workers": "rollout.num_workers",
    "num_env_runners": "rollout.num_workers",
    "num_envs": "rollout.num_envs",
    "num_envs_per_worker": "rollout.num_envs",
    "num_envs_per_env_runner": "rollout.num_envs",
    "rollout_fragment_length": "rollout.fragment_steps (of each sub-environment)",
    "batch_mode": "rollout.batch_mode",
    "remote_worker_envs": "env.vectorization",
    "gym_env_vectorize_mode": "env.vectorization",
    "env_runners": "its keys are in rollout, env and resources here",
    "explore": "training always samples; evaluation.explore decides for evaluation",
    "exploration_config": _EXPLORATION,
    "epsilon": "epsilon (a number, or [[env_steps, value], ...])",
    "initial_epsilon": _EXPLORATION,
    "final_epsilon": _EXPLORATION,
    "epsilon_timesteps": _EXPLORATION,
    "sample_timeout_s": "rollout workers stream fragments, so nothing waits for a sample to end",
    # Environment, observations, rewards, actions
    "env_config": "env.kwargs",
    "horizon": "env.max_episode_steps",
    "observation_filter": "connectors.normalize_obs",
    "clip_rewards": "connectors.clip_reward (a number: the limit)",
    "clip_actions": "Box actions are clipped to their bounds, unless connectors.squash_action",
    "normalize_actions": "connectors.squash_action (a tanh-squashed Gaussian over the bounds)",
    "preprocessor_pref": _CONNECTOR,
    "framestack": _CONNECTOR,
    "grayscale": _CONNECTOR,
    "dim": _CONNECTOR,
    "env_to_module_connector": _CONNECTOR,
    # Training
    "gamma": "gamma",
    "lr": "optim.lr",
    "lr_schedule": "optim.lr",
    "grad_clip": "optim.max_grad_norm",
    "grad_clip_by": "gradients are clipped by their global norm: optim.max_grad_norm",
    "optimizer": "set optim.kind, optim.lr and the other keys of optim",
    "adam_epsilon": "optim.eps",
    "weight_decay": "optim.weight_decay",
    "train_batch_size": "train_rows (a multiple of num_workers x num_envs x fragment_steps)",
    "train_batch_size_per_learner": "train_rows (of all learner workers together)",
    "sgd_minibatch_size": "minibatch_rows",
    "minibatch_size": "minibatch_rows",
    "num_sgd_iter": "num_epochs",
    "num_epochs": "num_epochs",
    "shuffle_batch_per_epoch": "rows are always shuffled anew in each epoch",
    "lambda": "gae_lambda",
    "lambda_": "gae_lambda",
    "use_gae": "advantages are always GAE's; gae_lambda=1 makes them Monte-Carlo returns",
    "use_critic": "there is always a critic; value_coef weighs its loss",
    "clip_param": "clip_eps",
    "vf_clip_param": "value_clip (limits the change of a value, not its squared error)",
    "vf_loss_coeff": "value_coef",
    "entropy_coeff": "entropy_coef",
    "entropy_coeff_schedule": "entropy_coef",
    "kl_coeff": "there is no KL penalty; target_kl ends a version's epochs early instead",
    "use_kl_loss": "there is no KL penalty; target_kl ends a version's epochs early instead",
    "kl_target": "target_kl (ends a version's epochs early; there is no KL penalty)",
    # Replay, Q values, soft actor-critics, asynchronous learners
    "replay_buffer_config": _REPLAY,
    "capacity": "replay.capacity_rows",
    "prioritized_replay_alpha": "replay.alpha",
    "prioritized_replay_beta": "replay.beta",
    "prioritized_replay_eps": "replay.eps",
    "num_steps_sampled_before_learning_starts": "learning_starts_rows",
    "training_intensity": "updates_per_row (gradient steps, not rows, for each env step)",
    "target_network_update_freq": "target.period_updates (gradient steps)",
    "tau": "target.tau",
    "n_step": "n_step",
    "double_q": "q.double",
    "dueling": "q.dueling",
    "noisy": "q.noisy",
    "num_atoms": "q.num_atoms (with q.atoms=categorical)",
    "v_min": "q.v_min",
    "v_max": "q.v_max",
    "td_error_loss_fn": "q.huber_delta (null is the squared error)",
    "twin_q": "num_critics (2 are twins)",
    "initial_alpha": "temperature.init",
    "target_entropy": "temperature.target_entropy",
    "actor_lr": "actor_lr",
    "critic_lr": "optim.lr",
    "alpha_lr": "temperature.lr",
    "policy_delay": "policy_delay",
    "target_noise": "target_noise_scale",
    "target_noise_clip": "target_noise_clip",
    "num_quantiles": "num_quantiles",
    "top_quantiles_to_drop_per_net": "drop_per_critic",
    "vtrace_clip_rho_threshold": "rho_bar",
    "vtrace_clip_pg_rho_threshold": "rho_bar",
    "circular_buffer_num_batches": "buffer_versions",
    "circular_buffer_iterations_per_batch": "num_passes",
    "max_requests_in_flight_per_env_runner": "rollout.max_policy_lag (versions, which it bounds)",
    # Model
    "fcnet_hiddens": "model.hidden",
    "fcnet_activation": "model.activation",
    "post_fcnet_hiddens": "model.hidden (the layers after the convolutions)",
    "post_fcnet_activation": "model.activation",
    "conv_filters": "model.conv (a list of [channels, kernel, stride])",
    "conv_activation": "model.activation",
    "vf_share_layers": "model.shared",
    "free_log_std": "a plain Gaussian's log_std never depends on observations; model.log_std_init",
    "custom_model": "model.factory (module:function, with model.kind=custom)",
    "custom_model_config": "model.factory_kwargs",
    "model_config": "its keys are in model here",
    "use_lstm": _NO_RECURRENCE,
    "lstm_cell_size": _NO_RECURRENCE,
    "max_seq_len": _NO_RECURRENCE,
    "use_attention": _NO_ATTENTION,
    # Framework and debugging
    "framework": "Millrace runs on torch only and has no such key: leave it out",
    "framework_str": "Millrace runs on torch only and has no such key: leave it out",
    "eager_tracing": "Millrace runs on torch only, which is eager; learner.compile compiles it",
    "torch_compile_learner": "learner.compile",
    "log_level": "say it on the command line: -v, or -vv for more",
    # Resources
    "num_gpus": "resources.learner_gpus (with learner.num_workers=0: learner.device=cuda)",
    "num_learners": "learner.num_workers",
    "num_gpus_per_learner": "resources.learner_gpus",
    "num_cpus_per_learner": "resources.learner_cpus",
    "custom_resources_per_learner": "resources.learner_custom",
    "num_gpus_per_worker": "resources.rollout_gpus",
    "num_gpus_per_env_runner": "resources.rollout_gpus",
    "num_cpus_per_worker": "resources.rollout_cpus",
    "num_cpus_per_env_runner": "resources.rollout_cpus",
    "custom_resources_per_worker": "resources.rollout_custom",
    "custom_resources_per_env_runner": "resources.rollout_custom",
    "num_cpus_for_driver": "the driver reserves no CPU",
    "num_cpus_for_main_process": "the driver reserves no CPU",
    # Evaluation
    "evaluation_interval": "evaluation.period_iterations",
    "evaluation_duration": "evaluation.episodes",
    "evaluation_num_episodes": "evaluation.episodes",
    "evaluation_duration_unit": "evaluation counts episodes: evaluation.episodes",
    "evaluation_parallel_to_training": "evaluation.parallel",
    "evaluation_num_workers": "evaluation steps evaluation.num_envs environments together",
    "evaluation_num_env_runners": "evaluation steps evaluation.num_envs environments together",
    "evaluation_config": "evaluation differs from training in the keys of evaluation only",
    # Faults
    "ignore_worker_failures": _RESTARTS,
    "ignore_env_runner_failures": _RESTARTS,
    "recreate_failed_workers": _RESTARTS,
    "recreate_failed_env_runners": _RESTARTS,
    "restart_failed_env_runners": _RESTARTS,
    "max_num_worker_restarts": "faults.max_worker_restarts",
    "max_num_env_runner_restarts": "faults.max_worker_restarts",
    "restart_failed_sub_environments": (
        "a failed environment is always rebuilt; faults.max_env_failures bounds it"
    ),
    "torch_skip_nan_gradients": "faults.on_nonfinite_loss",
    # Checkpoints and reporting
    "checkpoint_freq": "checkpoint.period_iterations",
    "checkpoint_frequency": "checkpoint.period_iterations",
    "checkpoint_at_end": "checkpoint.at_end",
    "checkpoint_config": "its keys are in checkpoint here",
    "keep_checkpoints_num": "checkpoint.keep",
    "num_to_keep": "checkpoint.keep",
    "metrics_num_episodes_for_smoothing": "reporting.window_episodes",
    "metrics_smoothing_episodes": "reporting.window_episodes",
    "min_time_s_per_iteration": _ITERATION,
    "min_train_timesteps_per_iteration": _ITERATION,
    "min_sample_timesteps_per_iteration": _ITERATION,
    "callbacks_class": "callbacks: ['module:Class'], a subclass of pipelines.Callbacks",
    # Several agents, offline data
    "policies": _NO_MULTI_AGENT,
    "policy_mapping_fn": _NO_MULTI_AGENT,
    "policies_to_train": _NO_MULTI_AGENT,
    "multiagent": _NO_MULTI_AGENT,
    "input": _LAKE,
    "output": _LAKE,
    # Files of tuned examples, and Tune
    "run": "algo (in lower case)",
    "config": "its keys stand at the top level here, beside algo and env",
    "num_samples": "say it to `millrace sweep`",
    "local_dir": "say it on the command line: --storage DIR",
    "storage_path": "say it on the command line: --storage DIR",
    # Stop criteria given outside of stop
    "timesteps_total": "stop.env_steps",
    "num_env_steps_sampled_lifetime": "stop.env_steps",
    "episode_reward_mean": "stop.episode_return_mean",
    "env_runners/episode_return_mean": "stop.episode_return_mean",
    "time_total_s": "stop.time_s",
}
"""RLlib's name → our dotted path, with a remark in brackets, or else a sentence."""

_NOTHING_AT_0 = {0: None}
RLLIB_VALUES: dict[str, dict[Any, Any]] = {
    "batch_mode": {"truncate_episodes": "truncate"},
    "remote_worker_envs": {True: "async", False: "sync"},
    "observation_filter": {"MeanStdFilter": True, "NoFilter": False},
    "clip_rewards": {True: 1.0, False: None},
    "torch_skip_nan_gradients": {True: "skip", False: "stop"},
    "evaluation_interval": _NOTHING_AT_0,
    "checkpoint_freq": _NOTHING_AT_0,
    "checkpoint_frequency": _NOTHING_AT_0,
}
"""RLlib's name → its value → ours, where they differ."""

STOP_NAMES: dict[str, str] = {
    "env_runners/episode_return_mean": "episode_return_mean",
    "env_runners/episode_reward_mean": "episode_return_mean",
    "sampler_results/episode_reward_mean": "episode_return_mean",
    "episode_reward_mean": "episode_return_mean",
    "timesteps_total": "env_steps",
    "num_env_steps_sampled_lifetime": "env_steps",
    "env_runners/num_env_steps_sampled_lifetime": "env_steps",
    "time_total_s": "time_s",
}
"""RLlib's stop criteria, which are understood, → ours."""

_PATH = re.compile(r"(?P<path>[a-z0-9_.]+)(?: (?P<remark>\(.*\)))?")


def rllib_answer(path: str, value: Any, *, known: Container[str]) -> str:
    """What to write instead of RLlib's key; empty when the key is not RLlib's.

    Args:
        path: the key as given, dotted where nested: RLlib's "model.fcnet_hiddens".
        value: what it was given.
        known: the dotted paths that the configuration has.
    """
    name = path if path in RLLIB_NAMES else path.rpartition(".")[2]
    entry = RLLIB_NAMES.get(name)
    match = _PATH.fullmatch(entry or "")
    if entry is None or match is None:
        return entry or ""
    ours, remark = match["path"], match["remark"]
    if ours not in known:
        return f"ours is {ours}, which this algorithm does not have: leave it out"
    return f"write {ours}={_written(_translated(name, value))}" + (f" {remark}" if remark else "")


def _translated(name: str, value: Any) -> Any:
    table: Mapping[Any, Any] = RLLIB_VALUES.get(name, {})
    return table.get(value, value) if isinstance(value, str | int | float) else value


def _written(value: Any) -> str:
    return printable(value) if isinstance(value, str) else shown(value)

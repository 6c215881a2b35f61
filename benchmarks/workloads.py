"""The comparisons there are: PPO, DQN, SAC, IMPALA and APPO, each a description of its own.

Settings of a peer that change its speed but not its work are its faster ones (README.md).
"""

from typing import Any

from benchmarks.peers import matched
from benchmarks.workload import Contestant, Target, Workload

LAG_0, LAG_1 = {"rollout.max_policy_lag": 0}, {"rollout.max_policy_lag": 1}
NATIVE = {"vectorization": "vector_entry_point"}
SB3 = Contestant("sb3", "Stable-Baselines3", peer="sb3")
CLEANRL = Contestant("cleanrl", "CleanRL-like single file", peer="cleanrl")
SINGLE = ("sb3", "cleanrl")

STREAM = Contestant(
    "ours-stream",
    "Millrace, 1 rollout worker, lag 1",
    overrides={"rollout.num_workers": 1, **LAG_1},
)
"""Beside one process: the same rows by way of Ray Data."""

PPO = Workload(
    name="ppo",
    matched=matched.PPO,
    overrides={
        "rollout.num_workers": 1,
        "rollout.num_envs": matched.PPO.num_envs,
        "rollout.fragment_steps": matched.PPO.fragment_steps,
        **LAG_0,
        "minibatch_rows": matched.PPO.minibatch_rows,
        "num_epochs": matched.PPO.num_epochs,
        "optim.lr": matched.PPO.lr,
        "optim.eps": matched.PPO.adam_eps,
        "optim.max_grad_norm": matched.PPO.max_grad_norm,
        "value_coef": matched.PPO.value_coef,
        "entropy_coef": matched.PPO.entropy_coef,
        "gamma": matched.PPO.gamma,
        "gae_lambda": matched.PPO.gae_lambda,
        "clip_eps": matched.PPO.clip_eps,
    },
    ours=Contestant("ours", "Millrace, lag 0"),
    peers=(
        SB3,
        CLEANRL,
        Contestant("rllib", "RLlib, 1 env runner", peer="rllib", options=NATIVE),
    ),
    information=(
        Contestant("ours-lag1", "Millrace, lag 1", overrides=LAG_1),
        Contestant("cleanrl-native", "CleanRL-like, native envs", peer="cleanrl", options=NATIVE),
    ),
    targets=(
        Target("env steps/s, faster of SB3 and CleanRL", "steps_per_s", SINGLE, 2.0),
        Target("env steps/s, RLlib", "steps_per_s", ("rllib",), 4.0),
        Target("time to return, fastest peer", "time_to_return_s", (*SINGLE, "rllib"), 0.8),
        Target("first result, RLlib", "first_result_s", ("rllib",), 0.6),
        Target("first result, SB3 (goal)", "first_result_s", ("sb3",), 1.0),
    ),
    env_steps=150_000,
    # an iteration of ours has a few rows less: the steps in which environments reset are none
    stretch_env_steps=matched.PPO.train_rows // 2,
    target_return=450.0,
    max_env_steps=500_000,
    trial_env_steps=2 * matched.PPO.train_rows,
)


def _replaying(numbers: Any) -> dict[str, Any]:
    """Ours in one process, at what DQN's and SAC's numbers have in common."""
    return {
        "rollout.num_workers": 0,
        **LAG_0,
        "model.hidden": numbers.hidden,
        "model.activation": "relu",
        "minibatch_rows": numbers.minibatch_rows,
        "replay.capacity_rows": numbers.capacity_rows,
        "learning_starts_rows": numbers.learning_starts_rows,
        "n_step": 1,
        "optim.lr": numbers.lr,
        "optim.eps": numbers.adam_eps,
        "optim.max_grad_norm": None,
        "gamma": numbers.gamma,
        "reporting.window_episodes": numbers.window_episodes,
    }


DQN = Workload(
    name="dqn",
    matched=matched.DQN,
    overrides={
        **_replaying(matched.DQN),
        "rollout.num_envs": 16,
        "rollout.fragment_steps": 16,
        "updates_per_row": 1 / matched.DQN.update_period_steps,
        "target.tau": 1.0,
        "target.period_updates": (
            matched.DQN.target_period_steps // matched.DQN.update_period_steps
        ),
        "epsilon": (
            (0, matched.DQN.epsilon_start),
            (matched.DQN.epsilon_decay_steps, matched.DQN.epsilon_end),
        ),
        "q.double": False,
        "q.dueling": False,
    },
    ours=Contestant("ours", "Millrace, one process"),
    peers=(
        SB3,
        CLEANRL,
        Contestant(
            "rllib",
            "RLlib, in its driver",
            peer="rllib",
            options={"num-runners": 0},
            max_env_steps=6000,
        ),
    ),
    information=(
        STREAM,
        Contestant(
            "cleanrl-4", "CleanRL-like, 4 envs together", peer="cleanrl", options={"num-envs": 4}
        ),
    ),
    targets=(
        Target("env steps/s, fastest peer", "steps_per_s", (*SINGLE, "rllib"), 2.0),
        Target("first result, RLlib", "first_result_s", ("rllib",), 0.6),
    ),
    env_steps=40_000,
    warmup_env_steps=matched.DQN.learning_starts_rows,
    stretch_env_steps=matched.DQN.report_period_steps,
    target_return=150.0,
    max_env_steps=60_000,
    time_limit_s=120.0,
    trial_env_steps=2000,
)

SAC = Workload(
    name="sac",
    matched=matched.SAC,
    overrides={
        **_replaying(matched.SAC),
        "rollout.num_envs": 4,
        "rollout.fragment_steps": 32,
        "updates_per_row": 1.0,
        "target.tau": matched.SAC.tau,
        "target.period_updates": 1,
    },
    ours=Contestant("ours", "Millrace, one process"),
    peers=(
        SB3,
        CLEANRL,
        Contestant(
            "rllib",
            "RLlib, about equal nets",
            peer="rllib",
            options={"num-runners": 0},
            max_env_steps=2000,
        ),
    ),
    information=(STREAM,),
    targets=(
        Target("env steps/s, fastest peer", "steps_per_s", (*SINGLE, "rllib"), 1.5),
        Target("first result, RLlib", "first_result_s", ("rllib",), 0.6),
    ),
    env_steps=3500,
    warmup_env_steps=matched.SAC.learning_starts_rows,
    stretch_env_steps=matched.SAC.report_period_steps,
    target_return=-250.0,
    max_env_steps=8000,
    time_limit_s=240.0,
    trial_env_steps=1100,
)


def _asynchronous(name: str) -> Workload:
    """IMPALA or APPO, each side at its own best settings."""
    return Workload(
        name=name,
        matched=matched.ASYNC,
        overrides={
            "rollout.num_workers": 1,
            "rollout.num_envs": 64,
            "rollout.fragment_steps": 64,
            "model.hidden": matched.ASYNC.hidden,
            "gamma": matched.ASYNC.gamma,
            "reporting.window_episodes": matched.ASYNC.window_episodes,
        },
        ours=Contestant("ours", "Millrace, 1 worker"),
        peers=tuple(
            Contestant(
                f"rllib-{runners}",
                f"RLlib, {runners} env runner{'s' * (runners > 1)}",
                peer="rllib",
                options={"num-runners": runners, "num-envs": 32, **NATIVE},
            )
            for runners in (1, 2)
        ),
        information=(
            Contestant("ours-2", "Millrace, 2 workers", overrides={"rollout.num_workers": 2}),
        ),
        targets=(
            Target("env steps/s, RLlib's best", "steps_per_s", ("rllib-1", "rllib-2"), 3.0),
            Target("first result, RLlib", "first_result_s", ("rllib-1", "rllib-2"), 0.6),
        ),
        env_steps=400_000,
        stretch_env_steps=5000,
        target_return=450.0,
        max_env_steps=1_500_000,
        time_limit_s=120.0,
        trial_env_steps=20_000,
    )


IMPALA, APPO = _asynchronous("impala"), _asynchronous("appo")

WORKLOADS = {workload.name: workload for workload in (PPO, DQN, SAC, IMPALA, APPO)}

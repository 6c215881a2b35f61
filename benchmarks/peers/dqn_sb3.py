"""Stable-Baselines3's DQN at the matched settings; run by .bench/sb3's python."""

from stable_baselines3 import DQN  # type: ignore[import-not-found]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

from benchmarks.peers.matched import DQN as MATCHED
from benchmarks.peers.reporting import Arguments
from benchmarks.peers.sb3_reporter import train


def build(args: Arguments) -> DQN:
    """Its loss is the smooth L1, its gradients are clipped at norm 10: the library's own."""
    # an update each UPDATE_PERIOD env steps, however many environments step together
    steps, updates = (
        max(1, MATCHED.update_period_steps // args.num_envs),
        max(1, args.num_envs // MATCHED.update_period_steps),
    )
    return DQN(
        "MlpPolicy",
        make_vec_env(MATCHED.env, n_envs=args.num_envs, seed=args.seed),
        learning_rate=MATCHED.lr,
        buffer_size=MATCHED.capacity_rows,
        learning_starts=MATCHED.learning_starts_rows,
        batch_size=MATCHED.minibatch_rows,
        tau=1.0,
        gamma=MATCHED.gamma,
        train_freq=steps,
        gradient_steps=updates,
        target_update_interval=MATCHED.target_period_steps,
        # the fraction is of the steps given to learn(), and may exceed 1
        exploration_fraction=MATCHED.epsilon_decay_steps / args.env_steps,
        exploration_initial_eps=MATCHED.epsilon_start,
        exploration_final_eps=MATCHED.epsilon_end,
        policy_kwargs={
            "net_arch": list(MATCHED.hidden),
            "optimizer_kwargs": {"eps": MATCHED.adam_eps},
        },
        stats_window_size=MATCHED.window_episodes,
        seed=args.seed,
        device="cpu",
    )


def main() -> None:
    train(build, period_steps=MATCHED.report_period_steps)


if __name__ == "__main__":
    main()

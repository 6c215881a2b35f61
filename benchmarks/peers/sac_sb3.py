"""Stable-Baselines3's SAC at the matched settings; run by .bench/sb3's python."""

from stable_baselines3 import SAC  # type: ignore[import-not-found]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

from benchmarks.peers.matched import SAC as MATCHED
from benchmarks.peers.reporting import Arguments
from benchmarks.peers.sb3_reporter import train


def build(args: Arguments) -> SAC:
    """As many updates as env steps, however many environments step together."""
    return SAC(
        "MlpPolicy",
        make_vec_env(MATCHED.env, n_envs=args.num_envs, seed=args.seed),
        learning_rate=MATCHED.lr,
        buffer_size=MATCHED.capacity_rows,
        learning_starts=MATCHED.learning_starts_rows,
        batch_size=MATCHED.minibatch_rows,
        tau=MATCHED.tau,
        gamma=MATCHED.gamma,
        train_freq=1,
        gradient_steps=args.num_envs,
        ent_coef="auto",
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

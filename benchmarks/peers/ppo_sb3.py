"""Stable-Baselines3's PPO at the matched settings; run by .bench/sb3's python."""

from stable_baselines3 import PPO  # type: ignore[import-not-found]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

from benchmarks.peers.matched import PPO as MATCHED
from benchmarks.peers.reporting import Arguments
from benchmarks.peers.sb3_reporter import train


def build(args: Arguments) -> PPO:
    """The library's own defaults wherever they match; it knows no native vector environments."""
    return PPO(
        "MlpPolicy",
        make_vec_env(MATCHED.env, n_envs=MATCHED.num_envs, seed=args.seed),
        n_steps=MATCHED.fragment_steps,
        batch_size=MATCHED.minibatch_rows,
        n_epochs=MATCHED.num_epochs,
        learning_rate=MATCHED.lr,
        gamma=MATCHED.gamma,
        gae_lambda=MATCHED.gae_lambda,
        clip_range=MATCHED.clip_eps,
        ent_coef=MATCHED.entropy_coef,
        vf_coef=MATCHED.value_coef,
        max_grad_norm=MATCHED.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(MATCHED.hidden), "vf": list(MATCHED.hidden)},
            "optimizer_kwargs": {"eps": MATCHED.adam_eps},
        },
        stats_window_size=MATCHED.window_episodes,
        seed=args.seed,
        device="cpu",
    )


def main() -> None:
    train(build, period_steps=MATCHED.train_rows)


if __name__ == "__main__":
    main()

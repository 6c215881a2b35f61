"""Stable-Baselines3's PPO at the matched settings; run by .bench/sb3's python."""

import torch
from stable_baselines3 import PPO  # type: ignore[import-not-found]
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found]
from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

from benchmarks.peers.reporting import MATCHED, Arguments, parse_arguments, report


class Reporter(BaseCallback):  # type: ignore[misc]
    """Reports after each update, and ends training once the return is reached."""

    def __init__(self, stop_return: float) -> None:
        super().__init__()
        self.stop_return = stop_return
        self.reached = False

    def report_iteration(self) -> None:
        episodes = self.model.ep_info_buffer
        mean = sum(e["r"] for e in episodes) / len(episodes) if episodes else float("nan")
        self.reached = mean >= self.stop_return
        report(self.model.num_timesteps, mean)

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps > 0:
            self.report_iteration()

    def _on_step(self) -> bool:
        return not self.reached

    def _on_training_end(self) -> None:
        if not self.reached:
            self.report_iteration()


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
        stats_window_size=MATCHED.return_window_episodes,
        seed=args.seed,
        device="cpu",
    )


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    build(args).learn(args.env_steps, callback=Reporter(args.stop_return), log_interval=None)


if __name__ == "__main__":
    main()

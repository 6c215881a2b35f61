"""RLlib's PPO (new API stack) at the matched settings; run by .bench/rllib's python."""

from collections import deque
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.reporting import MATCHED, Arguments, parse_arguments, report


def config(args: Arguments) -> Any:
    """No KL term and no clip of the value loss, since the other contestants have none."""
    model = DefaultModelConfig(
        fcnet_hiddens=list(MATCHED.hidden), fcnet_activation="tanh", vf_share_layers=False
    )
    return (
        PPOConfig()
        .environment(MATCHED.env)
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=MATCHED.num_envs,
            rollout_fragment_length=MATCHED.fragment_steps,
            gym_env_vectorize_mode=args.vectorization,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=MATCHED.train_rows,
            minibatch_size=MATCHED.minibatch_rows,
            num_epochs=MATCHED.num_epochs,
            lr=MATCHED.lr,
            gamma=MATCHED.gamma,
            lambda_=MATCHED.gae_lambda,
            clip_param=MATCHED.clip_eps,
            vf_clip_param=float("inf"),
            vf_loss_coeff=MATCHED.value_coef,
            entropy_coeff=MATCHED.entropy_coef,
            use_kl_loss=False,
            grad_clip=MATCHED.max_grad_norm,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=model)
        .debugging(seed=args.seed, log_level="ERROR")
    )


def main() -> None:
    args = parse_arguments()
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    algorithm = config(args).build_algo()
    torch.set_num_threads(args.threads)
    env_steps = 0
    returns: deque[float] = deque(maxlen=MATCHED.return_window_episodes)
    while env_steps < args.env_steps:
        runners = algorithm.train()["env_runners"]
        env_steps = int(runners["num_env_steps_sampled_lifetime"])
        # RLlib's mean covers one iteration's episodes; the comparison wants the last hundred.
        new_episodes = int(runners.get("num_episodes", 0))
        returns.extend([float(runners.get("episode_return_mean", 0.0))] * new_episodes)
        mean = sum(returns) / len(returns) if returns else float("nan")
        report(env_steps, mean)
        if mean >= args.stop_return:
            break
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()

"""RLlib's PPO (new API stack) at the matched settings; run by .bench/rllib's python."""

from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.matched import PPO
from benchmarks.peers.reporting import parse_arguments
from benchmarks.peers.rllib_training import train


def config(*, num_runners: int, vectorization: str) -> Any:
    """No KL term and no clip of the value loss, since the other contestants have none."""
    model = DefaultModelConfig(
        fcnet_hiddens=list(PPO.hidden), fcnet_activation="tanh", vf_share_layers=False
    )
    return (
        PPOConfig()
        .environment(PPO.env)
        .env_runners(
            num_env_runners=num_runners,
            num_envs_per_env_runner=PPO.num_envs,
            rollout_fragment_length=PPO.fragment_steps,
            gym_env_vectorize_mode=vectorization,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=PPO.train_rows,
            minibatch_size=PPO.minibatch_rows,
            num_epochs=PPO.num_epochs,
            lr=PPO.lr,
            gamma=PPO.gamma,
            lambda_=PPO.gae_lambda,
            clip_param=PPO.clip_eps,
            vf_clip_param=float("inf"),
            vf_loss_coeff=PPO.value_coef,
            entropy_coeff=PPO.entropy_coef,
            use_kl_loss=False,
            grad_clip=PPO.max_grad_norm,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=model)
    )


def main() -> None:
    args = parse_arguments()
    matched = config(num_runners=args.num_runners, vectorization=args.vectorization)
    train(matched, args, window_episodes=PPO.window_episodes)


if __name__ == "__main__":
    main()

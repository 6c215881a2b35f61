"""RLlib's SAC (new API stack) at the matched settings; run by .bench/rllib's python."""

from typing import Any

from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.matched import SAC
from benchmarks.peers.reporting import Arguments, parse_arguments
from benchmarks.peers.rllib_training import train


def config(args: Arguments) -> Any:
    """One update per env step, uniform replay."""
    return (
        SACConfig()
        .environment(SAC.env)
        .env_runners(
            num_env_runners=args.num_runners,
            num_envs_per_env_runner=args.num_envs,
            rollout_fragment_length=1,
            gym_env_vectorize_mode=args.vectorization,
        )
        .learners(num_learners=0)
        .training(
            actor_lr=SAC.lr,
            critic_lr=SAC.lr,
            alpha_lr=SAC.lr,
            gamma=SAC.gamma,
            tau=SAC.tau,
            n_step=1,
            train_batch_size_per_learner=SAC.minibatch_rows,
            training_intensity=SAC.minibatch_rows,
            num_steps_sampled_before_learning_starts=SAC.learning_starts_rows,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": SAC.capacity_rows},
        )
        .reporting(
            min_sample_timesteps_per_iteration=SAC.report_period_steps,
            min_time_s_per_iteration=None,
        )
        .rl_module(model_config=model())
    )


def model() -> DefaultModelConfig:
    """Widths with 205 k parameters in all, where two critics and an actor of the others have 202 k.

    RLlib's critics encode observation and action apart and fuse them: at widths of 256 they alone
    would have several times as many.
    """
    return DefaultModelConfig(
        fcnet_hiddens=[128],
        fcnet_activation="relu",
        head_fcnet_hiddens=[256],
        head_fcnet_activation="relu",
        fusionnet_hiddens=[48],
        fusionnet_activation="relu",
    )


def main() -> None:
    args = parse_arguments()
    train(config(args), args, window_episodes=SAC.window_episodes)


if __name__ == "__main__":
    main()

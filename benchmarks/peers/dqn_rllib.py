"""RLlib's DQN (new API stack) at the matched settings; run by .bench/rllib's python."""

from typing import Any

from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.matched import DQN
from benchmarks.peers.reporting import Arguments, parse_arguments
from benchmarks.peers.rllib_training import train

ROWS_PER_SAMPLE = 64
"""A call of its sampler costs milliseconds whatever it brings: updates then come in groups."""


def config(args: Arguments) -> Any:
    """Double, dueling and priorities off, since the other contestants have none; Huber loss."""
    return (
        DQNConfig()
        .environment(DQN.env)
        .env_runners(
            num_env_runners=args.num_runners,
            num_envs_per_env_runner=args.num_envs,
            rollout_fragment_length=max(1, ROWS_PER_SAMPLE // args.num_envs),
            gym_env_vectorize_mode=args.vectorization,
        )
        .learners(num_learners=0)
        .training(
            lr=DQN.lr,
            adam_epsilon=DQN.adam_eps,
            gamma=DQN.gamma,
            train_batch_size_per_learner=DQN.minibatch_rows,
            # rows replayed for each row sampled
            training_intensity=DQN.minibatch_rows / DQN.update_period_steps,
            num_steps_sampled_before_learning_starts=DQN.learning_starts_rows,
            target_network_update_freq=DQN.target_period_steps,
            epsilon=[(0, DQN.epsilon_start), (DQN.epsilon_decay_steps, DQN.epsilon_end)],
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": DQN.capacity_rows},
            double_q=False,
            dueling=False,
            n_step=1,
            grad_clip=None,
        )
        .reporting(min_sample_timesteps_per_iteration=DQN.report_period_steps)
        .rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=list(DQN.hidden), fcnet_activation="relu")
        )
    )


def main() -> None:
    args = parse_arguments()
    train(config(args), args, window_episodes=DQN.window_episodes)


if __name__ == "__main__":
    main()

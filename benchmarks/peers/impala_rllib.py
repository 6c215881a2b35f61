"""RLlib's IMPALA (new API stack) at its own best settings; run by .bench/rllib's python."""

from typing import Any

from ray.rllib.algorithms.impala import IMPALAConfig

from benchmarks.peers.matched import ASYNC
from benchmarks.peers.reporting import Arguments, parse_arguments
from benchmarks.peers.rllib_training import asynchronous, shared_net, train


def config(args: Arguments) -> Any:
    """The numbers of RLlib's own tuned example cartpole_impala.py; its learner takes 500 rows."""
    return (
        asynchronous(IMPALAConfig(), args)
        .training(
            train_batch_size_per_learner=500,
            lr=5e-4,
            gamma=ASYNC.gamma,
            grad_clip=40.0,
            grad_clip_by="global_norm",
            vf_loss_coeff=0.05,
            entropy_coeff=0.0,
        )
        .rl_module(model_config=shared_net())
    )


def main() -> None:
    args = parse_arguments()
    train(config(args), args, window_episodes=ASYNC.window_episodes)


if __name__ == "__main__":
    main()

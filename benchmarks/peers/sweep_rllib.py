"""RLlib's sweep by Tune at the matched settings; run by .bench/rllib's python.

One process a trial, two trials side by side: on two cores that is its fastest way.
"""

import argparse
import os

import ray
from ray import tune
from ray.rllib.algorithms import ppo

from benchmarks.peers.ppo_rllib import config as matched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-steps", type=int, required=True)
    parser.add_argument("--lrs", type=float, nargs="+", required=True)
    parser.add_argument("--storage", required=True)
    args = parser.parse_args()
    config = (
        matched(num_runners=0, vectorization="vector_entry_point")
        .training(lr=tune.grid_search(args.lrs))
        .debugging(seed=0, log_level="ERROR")
    )
    ray.init(
        num_cpus=os.cpu_count(), include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    stop = {"env_runners/num_env_steps_sampled_lifetime": args.env_steps}
    tuner = tune.Tuner(
        ppo.PPO,  # its name would need packages of every other algorithm
        param_space=config,
        run_config=tune.RunConfig(
            stop=stop,
            verbose=0,
            storage_path=args.storage,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    found = tuner.fit()
    assert not found.errors, found.errors
    assert len(found) == len(args.lrs)


if __name__ == "__main__":
    main()

"""RLlib's sweep by Tune at the matched settings; run by .bench/rllib's python.

One process a trial, two trials side by side: on two cores that is its fastest way.
"""

import argparse
import os

import ray
from ray import tune
from ray.rllib.algorithms import ppo
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.matched import PPO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-steps", type=int, required=True)
    parser.add_argument("--lrs", type=float, nargs="+", required=True)
    parser.add_argument("--storage", required=True)
    args = parser.parse_args()
    model = DefaultModelConfig(
        fcnet_hiddens=list(PPO.hidden), fcnet_activation="tanh", vf_share_layers=False
    )
    config = (
        PPOConfig()
        .environment(PPO.env)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=PPO.num_envs,
            rollout_fragment_length=PPO.fragment_steps,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=PPO.train_rows,
            minibatch_size=PPO.minibatch_rows,
            num_epochs=PPO.num_epochs,
            lr=tune.grid_search(args.lrs),
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

"""PPO in one file in the manner of CleanRL (all tensors in the loop), written for this comparison.

T time, B environments, R rows of one iteration, M rows of a minibatch.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.peers.cleanrl_parts import Returns, sync_envs
from benchmarks.peers.matched import PPO as MATCHED
from benchmarks.peers.reporting import Arguments, parse_arguments, report


def layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def tanh_net(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
    first, second = MATCHED.hidden
    hidden_gain = float(np.sqrt(2))
    return nn.Sequential(
        layer(inputs, first, hidden_gain),
        nn.Tanh(),
        layer(first, second, hidden_gain),
        nn.Tanh(),
        layer(second, outputs, last_gain),
    )


class Trainer:
    """Environments, two nets, one optimiser and the preallocated [T, B] storage."""

    def __init__(self, args: Arguments) -> None:
        torch.manual_seed(args.seed)
        T, B = MATCHED.fragment_steps, MATCHED.num_envs
        self.envs = make_envs(args.vectorization)
        obs_B, _ = self.envs.reset(seed=args.seed)
        num_features = obs_B.shape[1]
        self.actor = tanh_net(num_features, 2, 0.01)
        self.critic = tanh_net(num_features, 1, 1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=MATCHED.lr, eps=MATCHED.adam_eps)
        self.obs_B = torch.as_tensor(obs_B, dtype=torch.float32)
        self.done_B = torch.zeros(B)
        self.returns = Returns(B, window_episodes=MATCHED.window_episodes)
        self.obs = torch.zeros(T, B, num_features)
        self.action = torch.zeros(T, B, dtype=torch.long)
        self.logp, self.reward = torch.zeros(T, B), torch.zeros(T, B)
        self.done, self.value = torch.zeros(T, B), torch.zeros(T, B)

    @torch.no_grad()
    def rollout(self) -> None:
        for t in range(MATCHED.fragment_steps):
            self.obs[t], self.done[t] = self.obs_B, self.done_B
            policy: Any = Categorical(logits=self.actor(self.obs_B))
            action_B = policy.sample()
            self.action[t], self.logp[t] = action_B, policy.log_prob(action_B)
            self.value[t] = self.critic(self.obs_B).squeeze(-1)
            obs_B, reward_B, terminated_B, truncated_B, _ = self.envs.step(action_B.numpy())
            done_B = np.logical_or(terminated_B, truncated_B)
            self.returns.step(reward_B, done_B)
            self.reward[t] = torch.as_tensor(reward_B)
            self.obs_B = torch.as_tensor(obs_B, dtype=torch.float32)
            self.done_B = torch.as_tensor(done_B, dtype=torch.float32)

    @torch.no_grad()
    def advantages(self) -> Tensor:
        """GAE with truncation taken for termination, as single-file scripts of this kind do."""
        advantage = torch.zeros_like(self.reward)
        next_value_B, keep_B = self.critic(self.obs_B).squeeze(-1), 1.0 - self.done_B
        carried_B = torch.zeros_like(next_value_B)
        for t in reversed(range(MATCHED.fragment_steps)):
            td_B = self.reward[t] + MATCHED.gamma * keep_B * next_value_B - self.value[t]
            carried_B = td_B + MATCHED.gamma * MATCHED.gae_lambda * keep_B * carried_B
            advantage[t] = carried_B
            next_value_B, keep_B = self.value[t], 1.0 - self.done[t]
        return advantage

    def update(self, advantage: Tensor) -> None:
        obs_R, action_R = self.obs.flatten(0, 1), self.action.flatten()
        logp_R, value_R = self.logp.flatten(), self.value.flatten()
        advantage_R = advantage.flatten()
        target_R = advantage_R + value_R
        for _ in range(MATCHED.num_epochs):
            for rows_M in torch.split(torch.randperm(MATCHED.train_rows), MATCHED.minibatch_rows):
                loss = self.loss(
                    obs_R[rows_M],
                    action_R[rows_M],
                    logp_R[rows_M],
                    value_R[rows_M],
                    advantage_R[rows_M],
                    target_R[rows_M],
                )
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.parameters, MATCHED.max_grad_norm)
                self.optimizer.step()

    def loss(
        self,
        obs_M: Tensor,
        action_M: Tensor,
        old_logp_M: Tensor,
        old_value_M: Tensor,
        advantage_M: Tensor,
        target_M: Tensor,
    ) -> Tensor:
        """The clipped surrogate and the clipped value loss of Schulman et al. 2017."""
        policy: Any = Categorical(logits=self.actor(obs_M))
        ratio_M = (policy.log_prob(action_M) - old_logp_M).exp()
        advantage_M = (advantage_M - advantage_M.mean()) / (advantage_M.std() + 1e-8)
        clipped_ratio_M = ratio_M.clamp(1 - MATCHED.clip_eps, 1 + MATCHED.clip_eps)
        policy_loss: Tensor = -torch.min(
            ratio_M * advantage_M, clipped_ratio_M * advantage_M
        ).mean()
        value_M = self.critic(obs_M).squeeze(-1)
        step_M = (value_M - old_value_M).clamp(-MATCHED.clip_eps, MATCHED.clip_eps)
        worse_M = torch.max((value_M - target_M) ** 2, (old_value_M + step_M - target_M) ** 2)
        value_loss: Tensor = 0.5 * worse_M.mean()
        entropy: Tensor = policy.entropy().mean()
        return policy_loss + MATCHED.value_coef * value_loss - MATCHED.entropy_coef * entropy


def make_envs(vectorization: str) -> gym.vector.VectorEnv:
    """Environments stepped in turn as the original does, or gymnasium's native CartPole."""
    if vectorization == "sync":
        return sync_envs(MATCHED.env, num_envs=MATCHED.num_envs)
    return gym.make_vec(
        MATCHED.env, num_envs=MATCHED.num_envs, vectorization_mode="vector_entry_point"
    )


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    env_steps = 0
    while env_steps < args.env_steps:
        trainer.rollout()
        env_steps += MATCHED.train_rows
        trainer.update(trainer.advantages())
        report(env_steps, trainer.returns.mean)
        if trainer.returns.mean >= args.stop_return:
            break


if __name__ == "__main__":
    main()

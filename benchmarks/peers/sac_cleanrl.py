"""SAC in one file in the manner of CleanRL, written for this comparison.

B environments, M rows of a minibatch, A action dimensions.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from benchmarks.peers.cleanrl_parts import Returns, Ring, Transitions, crossed, sync_envs
from benchmarks.peers.matched import SAC
from benchmarks.peers.reporting import Arguments, parse_arguments, report

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0


def trunk(num_features: int) -> nn.Sequential:
    first, second = SAC.hidden
    return nn.Sequential(
        nn.Linear(num_features, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    )


class Actor(nn.Module):
    """A Gaussian squashed by tanh and scaled to the bounds of the actions."""

    def __init__(self, num_features: int, low_A: Tensor, high_A: Tensor) -> None:
        super().__init__()
        self.trunk = trunk(num_features)
        self.mean = nn.Linear(SAC.hidden[-1], len(low_A))
        self.log_std = nn.Linear(SAC.hidden[-1], len(low_A))
        self.scale_A, self.bias_A = (high_A - low_A) / 2, (high_A + low_A) / 2

    def forward(self, obs_M: Tensor) -> tuple[Tensor, Tensor]:
        """A sampled action and its log-probability, whose gradients reach the parameters."""
        features = self.trunk(obs_M)
        unit_MA = torch.tanh(self.log_std(features))
        log_std_MA = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (unit_MA + 1)
        normal = Normal(self.mean(features), log_std_MA.exp())
        raw_MA = normal.rsample()
        squashed_MA = torch.tanh(raw_MA)
        # Haarnoja et al. 2018, arXiv:1812.05905, appendix C; 1e-6 keeps the logarithm finite
        correction_MA = torch.log(self.scale_A * (1 - squashed_MA.pow(2)) + 1e-6)
        logp_MA = normal.log_prob(raw_MA) - correction_MA  # type: ignore[no-untyped-call]
        return squashed_MA * self.scale_A + self.bias_A, logp_MA.sum(1)


class Critic(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(trunk(num_features), nn.Linear(SAC.hidden[-1], 1))

    def forward(self, obs_M: Tensor, action_M: Tensor) -> Tensor:
        value_M: Tensor = self.net(torch.cat([obs_M, action_M], 1)).squeeze(-1)
        return value_M


class Trainer:
    """Environments, actor, two critics with targets, three optimisers and the ring."""

    def __init__(self, args: Arguments) -> None:
        torch.manual_seed(args.seed)
        self.envs = sync_envs(SAC.env, num_envs=args.num_envs)
        self.envs.action_space.seed(args.seed)
        self.num_envs, self.env_steps = args.num_envs, 0
        self.obs_B, _ = self.envs.reset(seed=args.seed)
        space = self.envs.single_action_space
        low_A, high_A = torch.as_tensor(space.low), torch.as_tensor(space.high)
        num_features = self.obs_B.shape[1]
        self.actor = Actor(num_features, low_A, high_A)
        self.critics = nn.ModuleList(Critic(num_features + len(low_A)) for _ in range(2))
        self.targets = nn.ModuleList(Critic(num_features + len(low_A)) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.target_entropy = -float(len(low_A))
        self.actor_optimizer = adam(list(self.actor.parameters()))
        self.critic_optimizer = adam(list(self.critics.parameters()))
        self.alpha_optimizer = adam([self.log_alpha])
        self.ring = Ring(SAC.capacity_rows, self.envs, seed=args.seed)
        self.returns = Returns(args.num_envs, window_episodes=SAC.window_episodes)

    def act(self) -> npt.NDArray[np.float32]:
        if self.env_steps < SAC.learning_starts_rows:
            random_B: npt.NDArray[np.float32] = self.envs.action_space.sample()
            return random_B
        with torch.no_grad():
            action_B, _ = self.actor(torch.from_numpy(self.obs_B))
        found: npt.NDArray[np.float32] = action_B.numpy()
        return found

    def step(self) -> None:
        """One step of all environments, and an update for each of them."""
        action_B = self.act()
        next_obs_B, reward_B, terminated_B, truncated_B, infos = self.envs.step(action_B)
        self.ring.add(self.obs_B, action_B, reward_B, next_obs_B, terminated_B, infos)
        self.returns.step(reward_B, terminated_B | truncated_B)
        self.obs_B = next_obs_B
        self.env_steps += self.num_envs
        if self.env_steps > SAC.learning_starts_rows:
            for _ in range(self.num_envs):
                self.update(self.ring.sample(SAC.minibatch_rows))

    def update(self, rows: Transitions) -> None:
        alpha = self.log_alpha.exp().detach()
        apply(self.critic_optimizer, self.critic_loss(rows, alpha))
        action_M, logp_M = self.actor(rows.obs)
        q_M = torch.min(*(critic(rows.obs, action_M) for critic in self.critics))
        apply(self.actor_optimizer, (alpha * logp_M - q_M).mean())
        gap = logp_M.detach() + self.target_entropy
        apply(self.alpha_optimizer, (-self.log_alpha.exp() * gap).mean())
        with torch.no_grad():
            pairs = zip(self.critics.parameters(), self.targets.parameters(), strict=True)
            for parameter, target in pairs:
                target.copy_(SAC.tau * parameter + (1 - SAC.tau) * target)

    def critic_loss(self, rows: Transitions, alpha: Tensor) -> Tensor:
        """Squared errors of both critics against the smaller target with its entropy."""
        with torch.no_grad():
            next_action_M, next_logp_M = self.actor(rows.next_obs)
            next_q_M = torch.min(*(net(rows.next_obs, next_action_M) for net in self.targets))
            next_value_M = next_q_M - alpha * next_logp_M
            target_M = rows.reward + SAC.gamma * (1 - rows.done) * next_value_M
        first, second = (critic(rows.obs, rows.action) for critic in self.critics)
        return nn.functional.mse_loss(first, target_M) + nn.functional.mse_loss(second, target_M)


def adam(parameters: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=SAC.lr, eps=SAC.adam_eps)


def apply(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    while trainer.env_steps < args.env_steps:
        trainer.step()
        if not crossed(SAC.report_period_steps, trainer.env_steps, args.num_envs):
            continue
        report(trainer.env_steps, trainer.returns.mean)
        if trainer.returns.mean >= args.stop_return:
            break


if __name__ == "__main__":
    main()

"""DQN in one file in the manner of CleanRL, written for this comparison.

B environments, M rows of a minibatch, A actions.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.peers.cleanrl_parts import Returns, Ring, crossed, sync_envs
from benchmarks.peers.matched import DQN
from benchmarks.peers.reporting import Arguments, parse_arguments, report


def q_net(num_features: int, num_actions: int) -> nn.Sequential:
    first, second = DQN.hidden
    return nn.Sequential(
        nn.Linear(num_features, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, num_actions),
    )


def epsilon(env_steps: int) -> float:
    """The share of random actions, falling linearly."""
    done_frac = min(1.0, env_steps / DQN.epsilon_decay_steps)
    return DQN.epsilon_start + done_frac * (DQN.epsilon_end - DQN.epsilon_start)


class Trainer:
    """Environments, the net and its target, one optimiser and the ring."""

    def __init__(self, args: Arguments) -> None:
        torch.manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        self.envs = sync_envs(DQN.env, num_envs=args.num_envs)
        self.num_envs, self.env_steps = args.num_envs, 0
        self.obs_B, _ = self.envs.reset(seed=args.seed)
        self.num_actions = 2
        self.q = q_net(self.obs_B.shape[1], self.num_actions)
        self.target = q_net(self.obs_B.shape[1], self.num_actions)
        self.target.load_state_dict(self.q.state_dict())
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=DQN.lr, eps=DQN.adam_eps)
        self.ring = Ring(DQN.capacity_rows, self.envs, seed=args.seed)
        self.returns = Returns(args.num_envs, window_episodes=DQN.window_episodes)

    def act(self) -> npt.NDArray[np.int64]:
        """Epsilon-greedy; the net is not asked where every action is random."""
        random_B = self.rng.random(self.num_envs) < epsilon(self.env_steps)
        action_B = self.rng.integers(0, self.num_actions, self.num_envs)
        if random_B.all():
            return action_B
        with torch.no_grad():
            greedy_B = self.q(torch.from_numpy(self.obs_B)).argmax(1).numpy()
        return np.where(random_B, action_B, greedy_B)

    def step(self) -> None:
        """One step of all environments, and the updates that fall due."""
        action_B = self.act()
        next_obs_B, reward_B, terminated_B, truncated_B, infos = self.envs.step(action_B)
        self.ring.add(self.obs_B, action_B, reward_B, next_obs_B, terminated_B, infos)
        self.returns.step(reward_B, terminated_B | truncated_B)
        self.obs_B = next_obs_B
        self.env_steps += self.num_envs
        if self.env_steps <= DQN.learning_starts_rows:
            return
        for _ in range(crossed(DQN.update_period_steps, self.env_steps, self.num_envs)):
            self.update()
        if crossed(DQN.target_period_steps, self.env_steps, self.num_envs):
            self.target.load_state_dict(self.q.state_dict())

    def update(self) -> None:
        rows = self.ring.sample(DQN.minibatch_rows)
        with torch.no_grad():
            next_value_M = self.target(rows.next_obs).max(1).values
            target_M = rows.reward + DQN.gamma * (1 - rows.done) * next_value_M
        q_M = self.q(rows.obs).gather(1, rows.action.unsqueeze(1)).squeeze(1)
        loss = nn.functional.mse_loss(q_M, target_M)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    while trainer.env_steps < args.env_steps:
        trainer.step()
        if not crossed(DQN.report_period_steps, trainer.env_steps, args.num_envs):
            continue
        report(trainer.env_steps, trainer.returns.mean)
        if trainer.returns.mean >= args.stop_return:
            break


if __name__ == "__main__":
    main()

"""Logged rows of bandits, as a learner draws them: the action that equals the context is right."""

import numpy as np
import torch

from rl_ops.policy import Policy
from rl_ops.row_data import RowData
from tests.learning_envs import CONTEXTS

ENVS = {kind: f"tests.learning_envs:{kind}" for kind in ("discrete", "continuous")}
SMALL = {"model": {"hidden": (32, 32), "activation": "relu"}, "minibatch_rows": 64}


def bandit_rows(kind: str, *, rows: int = 2000, seed: int = 0) -> RowData:
    """Uniform actions of one step each, which terminates."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "discrete":
        context = torch.randint(0, CONTEXTS, (rows,), generator=generator)
        obs = torch.eye(CONTEXTS)[context]
        action = torch.randint(0, CONTEXTS, (rows,), generator=generator)
        reward = (action == context).float()
    else:
        obs, action = (2 * torch.rand(rows, 1, generator=generator) - 1 for _ in range(2))
        reward = 1 - (action - obs).abs()[:, 0]
    index = torch.arange(rows)
    columns = {"action": action, "return_n": reward, "bootstrap_discount": torch.zeros(rows)}
    device = torch.device("cpu")
    return RowData(obs, index, columns, bootstrap_row=index, device=device)


def error_of(made, kind: str) -> float:
    """How often the learner's greedy action is wrong, or how far off it is on average."""
    policy = Policy(made.policy, made.weights())
    if kind == "discrete":
        obs = np.eye(CONTEXTS, dtype=np.float32)
        return float((policy.act(obs)[0] != np.arange(CONTEXTS)).mean())
    obs = np.linspace(-1, 1, 21, dtype=np.float32)[:, None]
    return float(np.abs(policy.act(obs)[0] - obs).mean())

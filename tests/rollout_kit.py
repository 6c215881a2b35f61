"""Rollouts of the environments in tests/envs.py under policies that can be computed by hand."""

from typing import Any

import numpy as np
import pyarrow as pa

from rl_ops import columns as c
from rl_ops.action_connectors import default_action_connectors
from rl_ops.connectors import ObsConnectors, default_obs_connectors
from rl_ops.distributions import Gaussian, SquashedGaussian, distribution_for
from rl_ops.envs import EnvSpec, make_env
from rl_ops.guarded_env import GuardPolicy
from rl_ops.model_spec import ModelSpec
from rl_ops.policy import PolicySpec, Weights
from rl_ops.rollout import Rollout, RolloutSpec

GUARD = GuardPolicy(max_failures=2, backoff_s=0.0)


def env_spec(name: str, *, vectorization: str = "auto", **kwargs: Any) -> EnvSpec:
    """`name` of a factory in tests.envs, or a registered id."""
    env_id = name if "/" in name or "-v" in name else f"tests.envs:{name}"
    return EnvSpec(env_id, kwargs, vectorization, guard=GUARD)


def policy_spec(
    env: EnvSpec, *, connectors: tuple[Any, ...] | None = None, squash: bool = False, **model: Any
) -> PolicySpec:
    """The policy of an environment with an MLP; without hidden layers it is linear."""
    made = make_env(env)
    obs_space, action_space = made.observation_space, made.action_space
    obs = (
        default_obs_connectors(obs_space)
        if connectors is None
        else ObsConnectors(connectors, obs_space)
    )
    actions = default_action_connectors(action_space, squash=squash)
    distribution = distribution_for(actions.input_space, squash=squash)
    is_gaussian = isinstance(distribution, Gaussian) and not isinstance(
        distribution, SquashedGaussian
    )
    size = distribution.param_size
    spec = ModelSpec(
        **{
            "kind": "mlp",
            "obs_shape": obs.output_space.shape,
            "param_size": size,
            "free_params": tuple(range(size // 2, size)) if is_gaussian else (),
            "hidden": (),
            **model,
        }
    )
    return PolicySpec(obs_space, action_space, obs, actions, spec, squash=squash)


def linear_weights(
    spec: PolicySpec,
    *,
    value: tuple[float, ...] | None = None,
    bias: float = 0.5,
    gain: float = 1.0,
    seed: int = 0,
) -> Weights:
    """Random logits, V(obs) = value . obs + bias, for a policy without hidden layers.

    With a gain of 0 logits are 0, so that actions depend on the noise only.
    """
    rng = np.random.default_rng(seed)
    size, width = spec.model.param_size, int(np.prod(spec.model.obs_shape))
    critic = np.zeros(width) if value is None else np.asarray(value)
    module = {
        "actor_head.weight": (gain * rng.standard_normal((size, width))).astype(np.float32),
        "actor_head.bias": np.zeros(size, np.float32),
        "critic_head.weight": critic.astype(np.float32)[None],
        "critic_head.bias": np.array([bias], np.float32),
    }
    if spec.model.free_params:
        module["free_params"] = np.zeros(len(spec.model.free_params), np.float32)
    return Weights(module)


def random_weights(spec: PolicySpec, seed: int = 0) -> Weights:
    """Weights for any MLP, by the names of `models.MLPActorCritic`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)

    model, width, module = spec.model, int(np.prod(spec.model.obs_shape)), {}
    for i, size in enumerate(model.hidden):
        module[f"weight_{i}"] = normal(model.num_towers, width, size)
        module[f"bias_{i}"] = normal(model.num_towers, 1, size)
        width = size
    module |= {
        "actor_head.weight": normal(model.param_size, width),
        "actor_head.bias": normal(1, model.param_size)[0],
        "critic_head.weight": normal(1, width),
        "critic_head.bias": normal(1, 1)[0],
    }
    if model.free_params:
        module["free_params"] = normal(1, len(model.free_params))[0]
    return Weights(module)


def make_rollout(
    env: EnvSpec,
    *,
    num_envs: int = 1,
    steps: int = 4,
    policy: PolicySpec | None = None,
    value: tuple[float, ...] | None = None,
    gain: float = 1.0,
    weights: Weights | None = None,
    worker_id: int = 0,
    incarnation: int = 0,
    **spec: Any,
) -> Rollout:
    """A rollout that has weights: linear ones unless given."""
    policy = policy_spec(env) if policy is None else policy
    rollout = Rollout(
        RolloutSpec(env, policy, num_envs, steps, **spec),
        worker_id=worker_id,
        incarnation=incarnation,
    )
    if weights is None:
        weights = linear_weights(policy, value=value, gain=gain)
    rollout.load(weights, version=0)
    return rollout


def fragments(rollout: Rollout, count: int = 1) -> list[pa.Table]:
    """Some fragments, one after the other; the environments are closed then."""
    try:
        return [rollout.fragment(k) for k in range(count)]
    finally:
        rollout.close()


def timeless(table: pa.Table) -> pa.Table:
    """All columns but when they were sampled."""
    return table.drop_columns([c.SAMPLED_AT])


def column(table: pa.Table, name: str) -> list[Any]:
    """One column as Python values."""
    values: list[Any] = table.column(name).to_pylist()
    return values


def by_env(tables: list[pa.Table], names: list[str]) -> dict[int, list[tuple[Any, ...]]]:
    """{environment: its rows in time order} over fragments, as tuples of the columns named."""
    found: dict[int, list[tuple[Any, ...]]] = {}
    for table in tables:
        columns = [column(table, name) for name in ("env_id", *names)]
        for env_id, *row in zip(*columns, strict=True):
            found.setdefault(env_id, []).append(tuple(row))
    return found

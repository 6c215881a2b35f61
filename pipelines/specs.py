"""From a configuration and an environment's spaces to what acts and what rolls out."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym

from pipelines.config import AlgorithmConfig
from rl_ops import columns as c
from rl_ops.action_connectors import default_action_connectors
from rl_ops.connectors import ObsConnectors, default_obs_connectors
from rl_ops.distributions import (
    Categorical,
    Distribution,
    Gaussian,
    Joint,
    SquashedGaussian,
    distribution_for,
)
from rl_ops.envs import EnvSpec, make_env
from rl_ops.errors import SpecError
from rl_ops.exploration import Act
from rl_ops.guarded_env import GuardPolicy
from rl_ops.model_spec import Head, ModelSpec, QSpec, SequenceSpec
from rl_ops.policy import PolicySpec
from rl_ops.rollout import RolloutSpec
from rl_ops.spaces import space_to_json


@dataclass(frozen=True)
class PolicyKind:
    """What kind of network acts, and what its output means.

    Attributes:
        head: an actor with a critic, an actor alone, or Q values.
        squash: Box actions by a tanh-squashed Gaussian; None asks connectors.squash_action.
        deterministic: Box actions by the tanh of the output.
        q: how a Q network ends; its number of actions is filled in from the environment.
        sequence: of a transformer, likewise; None for what acts by one observation.
    """

    head: Head = "actor_critic"
    squash: bool | None = None
    deterministic: bool = False
    q: QSpec | None = None
    sequence: SequenceSpec | None = None


def env_spec(config: AlgorithmConfig) -> EnvSpec:
    """The environment a configuration names."""
    env = config.env
    return EnvSpec(
        id=env.id,
        kwargs=env.kwargs,
        vectorization=env.vectorization,
        max_episode_steps=env.max_episode_steps,
        guard=GuardPolicy(max_failures=config.faults.max_env_failures),
    )


class Spaces(NamedTuple):
    """What an environment takes and gives."""

    obs: gym.Space[Any]
    action: gym.Space[Any]


def env_spaces(config: AlgorithmConfig) -> Spaces:
    """Those of the environment that a configuration names, which is made to ask it.

    Raises:
        UnknownEnvError: no such environment.
    """
    env = make_env(env_spec(config))
    try:
        return Spaces(env.observation_space, env.action_space)
    finally:
        env.close()


def policy_spec(
    config: AlgorithmConfig, kind: PolicyKind, act: Act, spaces: Spaces | None = None
) -> PolicySpec:
    """Connectors, model and distribution for an environment's spaces.

    Args:
        config: of the run.
        kind: of network.
        act: how actions are chosen while data is gathered.
        spaces: where they are known; else the environment is asked.

    Raises:
        UnknownEnvError: no such environment.
        SpecError: a space that nothing here can encode, or connectors that do not fit it.
    """
    obs_space, action_space = spaces or env_spaces(config)
    connectors = config.connectors
    if connectors.obs is None:
        obs_connectors = default_obs_connectors(obs_space)
    else:
        described = {"space": space_to_json(obs_space), "steps": connectors.obs}
        obs_connectors = ObsConnectors.from_json(described)
    squash = connectors.squash_action if kind.squash is None else kind.squash
    bounded = squash or kind.deterministic
    action_connectors = default_action_connectors(action_space, squash=bounded)
    try:
        distribution = distribution_for(
            action_connectors.input_space, squash=squash, deterministic=kind.deterministic
        )
        act.check(distribution)
    except SpecError as error:
        raise SpecError(f"{config.algo} on {config.env.id}: {error}") from error
    return PolicySpec(
        obs_space=obs_space,
        action_space=action_space,
        obs_connectors=obs_connectors,
        action_connectors=action_connectors,
        model=model_spec(config, obs_connectors, distribution, kind),
        act=act,
        squash=squash,
        deterministic=kind.deterministic,
        obs_clip=connectors.obs_clip,
    )


def model_spec(
    config: AlgorithmConfig,
    connectors: ObsConnectors,
    distribution: Distribution,
    kind_of_policy: PolicyKind,
) -> ModelSpec:
    """The network for what the connectors give and the distribution takes."""
    model, space = config.model, connectors.output_space
    if not isinstance(space, gym.spaces.Box):
        raise SpecError(
            f"connectors.obs end in {space}; a network needs a Box. Add a 'flatten' or 'one_hot'"
        )
    is_image = len(space.shape) == 3
    kind = model.kind if model.kind != "auto" else ("cnn" if is_image else "mlp")
    if kind == "cnn" and not is_image:
        raise SpecError(f"model.kind is cnn, but observations are {space}; expected [H, W, C]")
    bytes_image = is_image and space.dtype == "uint8"
    q = kind_of_policy.q
    if q is not None:
        assert isinstance(distribution, Categorical)  # the act's check
        q = dataclasses.replace(q, num_actions=distribution.num_actions)
    return ModelSpec(
        kind=kind,
        obs_shape=space.shape,
        param_size=distribution.param_size,
        free_params=free_params(distribution),
        hidden=model.hidden,
        activation=model.activation,
        shared=model.shared or kind == "cnn",
        conv=model.conv if kind == "cnn" else (),
        log_std_init=model.log_std_init,
        log_std_params=log_std_params(distribution),
        obs_scale=1 / 255 if bytes_image and not config.connectors.normalize_obs else 1.0,
        factory=model.factory,
        factory_kwargs=model.factory_kwargs,
        head=kind_of_policy.head,
        q=q,
        sequence=_sequence(kind_of_policy.sequence, distribution),
    )


def _sequence(spec: SequenceSpec | None, distribution: Distribution) -> SequenceSpec | None:
    """With what the actions are."""
    if spec is None:
        return None
    if isinstance(distribution, Categorical):
        return dataclasses.replace(spec, num_actions=distribution.num_actions)
    if isinstance(distribution, Gaussian | SquashedGaussian):
        return dataclasses.replace(spec, action_size=distribution.size)
    raise SpecError(f"a transformer sees actions of one Box or one Discrete, got {distribution}")


def log_std_params(distribution: Distribution) -> tuple[int, ...]:
    """Indexes of log_std where observations move it: of one squashed Gaussian."""
    if not isinstance(distribution, SquashedGaussian):
        return ()
    return tuple(range(distribution.size, 2 * distribution.size))


def free_params(distribution: Distribution) -> tuple[int, ...]:
    """Indexes of the parameters no observation moves: a plain Gaussian's log_std."""
    if isinstance(distribution, Gaussian):
        return tuple(range(distribution.size, 2 * distribution.size))
    if not isinstance(distribution, Joint):
        return ()
    found, offset = [], 0
    parts = distribution.parts
    for part in parts if isinstance(parts, tuple) else parts.values():
        found += [offset + i for i in free_params(part)]
        offset += part.param_size
    return tuple(found)


def rollout_spec(config: AlgorithmConfig, policy: PolicySpec, *, run_id: str) -> RolloutSpec:
    """What a rollout worker runs."""
    rollout = config.rollout
    return RolloutSpec(
        env=env_spec(config),
        policy=policy,
        num_envs=rollout.num_envs,
        fragment_steps=rollout.fragment_steps,
        batch_mode=rollout.batch_mode,
        keep=frozenset(config.trace.columns) & {c.OBS, c.FINAL_OBS}
        if config.trace.enabled
        else frozenset(),
        gamma=config.gamma,
        normalize_reward=config.connectors.normalize_reward,
        run_id=run_id,
        seed=config.seed,
    )

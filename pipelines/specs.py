"""From a configuration and an environment's spaces to what acts and what rolls out."""

import gymnasium as gym

from pipelines.config import AlgorithmConfig
from rl_ops import columns as c
from rl_ops.action_connectors import default_action_connectors
from rl_ops.connectors import ObsConnectors, default_obs_connectors
from rl_ops.distributions import Distribution, Gaussian, Joint, distribution_for
from rl_ops.envs import EnvSpec, make_env
from rl_ops.errors import SpecError
from rl_ops.guarded_env import GuardPolicy
from rl_ops.model_spec import ModelSpec
from rl_ops.policy import PolicySpec
from rl_ops.rollout import Act, RolloutSpec
from rl_ops.spaces import space_to_json


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


def policy_spec(config: AlgorithmConfig) -> PolicySpec:
    """Connectors, model and distribution for the environment's spaces, which it makes to ask.

    Raises:
        UnknownEnvError: no such environment.
        SpecError: a space that nothing here can encode, or connectors that do not fit it.
    """
    env = make_env(env_spec(config))
    try:
        obs_space, action_space = env.observation_space, env.action_space
    finally:
        env.close()
    connectors = config.connectors
    if connectors.obs is None:
        obs_connectors = default_obs_connectors(obs_space)
    else:
        described = {"space": space_to_json(obs_space), "steps": connectors.obs}
        obs_connectors = ObsConnectors.from_json(described)
    squash = connectors.squash_action
    action_connectors = default_action_connectors(action_space, squash=squash)
    distribution = distribution_for(action_connectors.input_space, squash=squash)
    return PolicySpec(
        obs_space=obs_space,
        action_space=action_space,
        obs_connectors=obs_connectors,
        action_connectors=action_connectors,
        model=model_spec(config, obs_connectors, distribution),
        squash=squash,
        obs_clip=connectors.obs_clip,
    )


def model_spec(
    config: AlgorithmConfig, connectors: ObsConnectors, distribution: Distribution
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
        obs_scale=1 / 255 if bytes_image and not config.connectors.normalize_obs else 1.0,
        factory=model.factory,
        factory_kwargs=model.factory_kwargs,
    )


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


def rollout_spec(
    config: AlgorithmConfig, policy: PolicySpec, *, act: Act, run_id: str
) -> RolloutSpec:
    """What a rollout worker runs."""
    rollout = config.rollout
    return RolloutSpec(
        env=env_spec(config),
        policy=policy,
        num_envs=rollout.num_envs,
        fragment_steps=rollout.fragment_steps,
        batch_mode=rollout.batch_mode,
        act=act,
        keep=frozenset(config.trace.columns) & {c.OBS, c.FINAL_OBS}
        if config.trace.enabled
        else frozenset(),
        gamma=config.gamma,
        normalize_reward=config.connectors.normalize_reward,
        run_id=run_id,
        seed=config.seed,
    )

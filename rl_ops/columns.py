"""Every column name a stream or a table may carry; nowhere else is one spelled as a string.

A row is one env step of one agent. Rows of a fragment are env-major: all steps of
sub-environment 0 in time order, then of sub-environment 1, and so on.
"""

from typing import Final

RUN_ID: Final = "run_id"
EPISODE_ID: Final = "episode_id"
T: Final = "t"
ENV_ID: Final = "env_id"
AGENT_ID: Final = "agent_id"
MODULE_ID: Final = "module_id"

OBS: Final = "obs"
"""What the environment emitted, unchanged: the log of record."""
MODEL_OBS: Final = "model_obs"
"""Connectors applied to obs: what the module is fed, before normalisation."""
FINAL_OBS: Final = "final_obs"
"""The observation after the row's step; only where is_last."""
ACTION: Final = "action"
"""What the distribution sampled, before action connectors clip or rescale it for the env."""
REWARD: Final = "reward"
SCALED_REWARD: Final = "scaled_reward"
"""Divided by the deviation of running returns."""
CLIPPED_REWARD: Final = "clipped_reward"
RUNNING_RETURN: Final = "running_return"
"""Discounted sum of the episode's rewards so far; its variance normalises rewards."""
TERMINATED: Final = "terminated"
TRUNCATED: Final = "truncated"
IS_LAST: Final = "is_last"
"""terminated | truncated | end of fragment: cuts every recursion."""

ABORTED: Final = "aborted"
"""An exception of the environment ended the episode here; reward is 0, truncated is true."""

LOGP: Final = "logp"
VALUE: Final = "value"
FINAL_VALUE: Final = "final_value"
"""V(final_obs) where is_last and not terminated, else 0."""
POLICY_VERSION: Final = "policy_version"
FRAGMENT_ID: Final = "fragment_id"
WORKER_ID: Final = "worker_id"
SAMPLED_AT: Final = "sampled_at"
"""When the row's fragment was complete: UTC microseconds."""
EPISODE_RETURN: Final = "episode_return"
"""Undiscounted return of the whole episode; null but on its last row, and there if aborted."""
EPISODE_LENGTH: Final = "episode_length"

ADVANTAGE: Final = "advantage"
VALUE_TARGET: Final = "value_target"
RETURN_N: Final = "return_n"
BOOTSTRAP_OBS: Final = "bootstrap_obs"
BOOTSTRAP_DISCOUNT: Final = "bootstrap_discount"

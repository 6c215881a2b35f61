"""What SQL sees of a lake beside its tables: views, each with the text that makes it."""

from dataclasses import dataclass
from typing import Final

from offline.schemas import CONSUMPTION, EPISODES, RUNS, STEPS, TABLES

RUN_EVENTS: Final = "run_events"
"""The table `runs` under the name that SQL has for it: `runs` is one row per run there."""

SOURCES: Final[dict[str, str]] = {
    **{name: name for name in TABLES if name != RUNS.name},
    RUN_EVENTS: RUNS.name,
}
"""Names in SQL → tables of the lake."""


@dataclass(frozen=True)
class View:
    """A view of SQL.

    Attributes:
        reads: the sources in its text.
        text: what it selects.
    """

    reads: tuple[str, ...]
    text: str


_EPISODE: Final = "PARTITION BY run_id, session, episode_id, agent_id"
"""An episode does not outlive the process of its environment, so not its session either."""

VIEWS: Final[dict[str, View]] = {
    # max_by ignores nulls, so a column keeps the last value that any event gave. Only what the
    # newest event says of itself, status, message and end, is taken from that one alone.
    "runs": View(
        (RUN_EVENTS,),
        """
        WITH ordered AS (
            SELECT *, row_number() OVER newest AS recency
            FROM run_events
            WINDOW newest AS (
                PARTITION BY run_id
                ORDER BY session DESC, "at" DESC, status = 'running', status
            )
        )
        SELECT
            run_id,
            max(status) FILTER (recency = 1) AS status,
            min_by(algo, recency) AS algo,
            min_by(env, recency) AS env,
            min_by(seed, recency) AS seed,
            count(DISTINCT session) AS sessions,
            min("at") AS started_at,
            max("at") FILTER (recency = 1 AND status <> 'running') AS ended_at,
            max(message) FILTER (recency = 1) AS message,
            min_by(config, recency) AS config,
            min_by(spaces, recency) AS spaces,
            min_by(packages, recency) AS packages,
            min_by(code, recency) AS code,
            min_by(host, recency) AS host,
            min_by(resumed_from, recency) AS resumed_from,
            min_by(input_versions, recency) AS input_versions
        FROM ordered
        GROUP BY run_id
        """,
    ),
    # final_obs is the observation after the last row of an episode or fragment. Where it is not
    # stored, the episode's next row has it, unless rows are missing in between.
    "transitions": View(
        (STEPS.name,),
        f"""
        WITH ahead AS (
            SELECT
                *,
                is_last AND (final_obs IS NOT NULL OR final_obs_bytes IS NOT NULL) AS is_cut,
                lead(t) OVER forward = t + 1 AS has_next,
                lead(obs) OVER forward AS later_obs,
                lead(obs_bytes) OVER forward AS later_obs_bytes
            FROM steps
            WINDOW forward AS ({_EPISODE} ORDER BY t)
        )
        SELECT
            run_id, session, fragment_id, worker_id, env_id, agent_id, module_id, episode_id, t,
            space, obs, obs_bytes, action, action_bytes, reward,
            CASE WHEN is_cut THEN final_obs WHEN has_next THEN later_obs END AS next_obs,
            CASE
                WHEN is_cut THEN final_obs_bytes WHEN has_next THEN later_obs_bytes
            END AS next_obs_bytes,
            terminated, truncated, aborted, logp, value, policy_version, sampled_at
        FROM ahead
        """,
    ),
    # From the last row backwards, so that one window gives the sum and how the episode ended.
    "returns": View(
        (STEPS.name,),
        f"""
        SELECT
            run_id, session, fragment_id, episode_id, agent_id, module_id, t, reward,
            sum(reward) OVER backward AS return_to_go,
            first_value(terminated) OVER backward AS episode_terminated,
            first_value(truncated) OVER backward AS episode_truncated,
            value, logp, policy_version, sampled_at
        FROM steps
        WINDOW backward AS ({_EPISODE} ORDER BY t DESC ROWS UNBOUNDED PRECEDING)
        """,
    ),
    "version_returns": View(
        (EPISODES.name,),
        """
        SELECT
            run_id, policy_version_last,
            count(*) AS episodes,
            avg("return") AS return_mean,
            min("return") AS return_min,
            max("return") AS return_max,
            avg(length) AS length_mean
        FROM episodes
        WHERE kind = 'train' AND NOT aborted
        GROUP BY run_id, policy_version_last
        """,
    ),
    "lag": View(
        (CONSUMPTION.name,),
        """
        SELECT
            run_id, session, fragment_id,
            min(policy_version) AS policy_version,
            max(learner_version) AS learner_version,
            max(learner_version - policy_version) AS lag,
            bool_and(lag = learner_version - policy_version) AS is_consistent,
            count(*) AS updates,
            sum(rows)::BIGINT AS rows,
            min("at") AS consumed_at
        FROM consumption
        GROUP BY run_id, session, fragment_id
        """,
    ),
}

SQL_NAMES: Final = (*SOURCES, *VIEWS)


def needed(names: set[str]) -> tuple[list[str], list[str]]:
    """The sources and views behind names in a query, in the order in which to make them.

    Args:
        names: of tables, as the query spells them; those that are no lake's are passed over.
    """
    lowered = {name.lower() for name in names}
    views = [name for name in VIEWS if name in lowered]
    read = {source for view in views for source in VIEWS[view].reads}
    return [name for name in SOURCES if name in lowered | read], views

"""Sections of a run's report that only a lake can fill: episodes, lag, faults, lineage."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from workflows.reports.blocks import Block, Chart, Facts, Section, Series, Table, rounded, text
from workflows.reports.curves import numbers
from workflows.reports.ope_page import Answer, intervals
from workflows.reports.run_tables import Rows, RunData, settings_of

_PARTS: Final = 200
_ROWS: Final = 500
"""Of a table of failures or checkpoints at most."""


def lake_sections(rows: Rows, runs: Sequence[RunData]) -> list[Section]:
    """The sections, in the order of the page."""
    return [
        Section("episodes", "Episodes", _episodes(rows)),
        Section("lag", "Lag", _lag(rows, runs)),
        Section("faults", "Faults", faults_of(rows)),
        Section("lineage", "Lineage", _lineage(rows)),
        Section("ope", "Off-policy estimates", _estimates(rows)),
    ]


_EPISODES: Final = f"""
    WITH numbered AS (
        SELECT run_id, "return", length,
            ntile({_PARTS}) OVER (PARTITION BY run_id ORDER BY ended_at, episode_id) AS part
        FROM episodes
        WHERE run_id IN {{runs}} AND kind = 'train' AND NOT coalesce(aborted, false)
            AND "return" IS NOT NULL
    )
    SELECT run_id, part, count(*) AS episodes, quantile_cont("return", 0.5) AS middle,
        quantile_cont("return", 0.1) AS low, quantile_cont("return", 0.9) AS high,
        avg(length) AS length
    FROM numbered GROUP BY ALL ORDER BY run_id, part"""


def _episodes(rows: Rows) -> list[Block]:
    found = rows(_EPISODES)
    if found.num_rows == 0:
        return []
    series = []
    names = found.column("run_id").to_numpy()
    for number, run_id in enumerate(rows.run_ids):
        chosen = np.flatnonzero(names == run_id)
        if not len(chosen):
            continue
        part = found.take(chosen)
        x = np.cumsum(part.column("episodes").to_numpy()).astype(float)
        columns = {
            name: numbers(part.column(name).to_numpy().astype(float))
            for name in ("middle", "low", "high")
        }
        series.append(
            Series(
                text(run_id),
                x.tolist(),
                columns["middle"],
                low=columns["low"],
                high=columns["high"],
                group=number,
            )
        )
    note = "median and 10 % to 90 % of the episodes in each of up to 200 parts"
    return [Chart("Returns as they were logged", series, "episodes", "return", note)]


_LAG: Final = f"""
    WITH numbered AS (
        SELECT run_id, learner_version, lag,
            ntile({_PARTS}) OVER (PARTITION BY run_id ORDER BY learner_version, fragment_id) AS part
        FROM lag WHERE run_id IN {{runs}}
    )
    SELECT run_id, max(learner_version) AS version, avg(lag) AS mean, max(lag) AS most
    FROM numbered GROUP BY run_id, part ORDER BY run_id, part"""

_LAG_TOTALS: Final = """
    SELECT run_id, count(*) AS fragments, sum(rows)::BIGINT AS rows, max(lag) AS most,
        avg(lag) AS mean, min(lag) >= 0 AND bool_and(is_consistent) AS consistent
    FROM lag WHERE run_id IN {runs} GROUP BY run_id"""


def _lag(rows: Rows, runs: Sequence[RunData]) -> list[Block]:
    totals = {row["run_id"]: row for row in rows.dicts(_LAG_TOTALS)}
    if not totals:
        return []
    bounds = {run.run_id: settings_of(run.config).get("rollout.max_policy_lag") for run in runs}
    table = []
    for run_id in (name for name in rows.run_ids if name in totals):
        row, bound = totals[run_id], bounds.get(run_id)
        holds = bool(row["consistent"]) and (bound is None or row["most"] <= bound)
        verdict = "holds" if bound is not None and holds else ("no bound" if holds else "BROKEN")
        tone = "good" if holds else "bad"
        figures = (
            row["fragments"],
            row["rows"],
            rounded(row["mean"], digits=4),
            row["most"],
            bound,
        )
        table.append([text(run_id), *figures, {"text": verdict, "tone": tone}])
    columns = ("run", "fragments used", "rows used", "mean lag", "greatest lag", "bound", "audit")
    note = "lag: versions that the learner was ahead of the policy that had acted, worked out anew"
    parts = rows.dicts(_LAG)
    series = []
    for number, run_id in enumerate(rows.run_ids):
        mine = [row for row in parts if row["run_id"] == run_id]
        if mine:
            x = [row["version"] for row in mine]
            series.append(
                Series(text(run_id), x, [float(row["most"]) for row in mine], group=number)
            )
    charts = [Chart("Greatest lag", series, "version of the learner", "versions")] if series else []
    return [Table("Staleness", columns, table, note), *charts]


_ENDINGS: Final = """
    SELECT run_id, count(*) AS episodes,
        count(*) FILTER (coalesce(aborted, false)) AS aborted,
        count(*) FILTER (truncated AND NOT coalesce(aborted, false)) AS truncated
    FROM episodes WHERE run_id IN {runs} AND kind = 'train' GROUP BY run_id"""

_FAILURES: Final = f"""
    SELECT run_id, session, kind, worker_id, count, message, "at" FROM failures
    WHERE run_id IN {{runs}} ORDER BY "at" DESC LIMIT {_ROWS}"""

_REJECTED: Final = f"""
    SELECT run_id, source, reason, count(*) AS rows FROM rejected WHERE run_id IN {{runs}}
    GROUP BY ALL ORDER BY rows DESC LIMIT {_ROWS}"""


def faults_of(rows: Rows) -> list[Block]:
    failures, rejected = rows.dicts(_FAILURES), rows.dicts(_REJECTED)
    endings = rows.dicts(_ENDINGS)
    aborted = sum(row["aborted"] for row in endings)
    total = sum(row["count"] or 1 for row in failures)
    facts = [
        ("failures", f"{total:,}", "bad" if total else "good"),
        ("episodes cut by a failure or the run's end", f"{aborted:,}", ""),
        ("truncated episodes", f"{sum(row['truncated'] for row in endings):,}", ""),
        ("rejected rows", f"{sum(row['rows'] for row in rejected):,}", "warn" if rejected else ""),
    ]
    blocks: list[Block] = [Facts(facts)]
    if failures:
        columns = ("at", "run", "session", "kind", "worker", "count", "message")
        table = [
            [
                text(row["at"]),
                text(row["run_id"]),
                row["session"],
                text(row["kind"]),
                row["worker_id"],
                row["count"],
                text(row["message"]),
            ]
            for row in failures
        ]
        blocks.append(Table("failures", columns, table))
    if rejected:
        names = ("run_id", "source", "reason")
        table = [[*(text(row[name]) for name in names), row["rows"]] for row in rejected]
        blocks.append(Table("rejected", ("run", "source", "reason", "rows"), table))
    return blocks


_CHECKPOINTS: Final = f"""
    SELECT c.*, e.return_mean, e.episodes FROM checkpoints c
    LEFT JOIN (
        SELECT run_id, policy_version, arg_max(return_mean, "at") AS return_mean,
            arg_max(episodes, "at") AS episodes
        FROM evaluations GROUP BY ALL
    ) e USING (run_id, policy_version)
    WHERE run_id IN {{runs}} ORDER BY run_id, session, checkpoint_id LIMIT {_ROWS}"""

_RECONCILED: Final = """
    WITH
        logged AS (
            SELECT run_id, session, fragment_id, count(*) AS logged FROM steps
            WHERE run_id IN {runs} GROUP BY ALL
        ),
        used AS (
            SELECT run_id, session, fragment_id, max(rows) AS used FROM consumption
            WHERE run_id IN {runs} GROUP BY ALL
        )
    SELECT run_id, coalesce(sum(logged), 0)::BIGINT AS logged,
        coalesce(sum(used), 0)::BIGINT AS used,
        count(*) FILTER (used.used IS NULL) AS unused,
        count(*) FILTER (logged.logged IS NULL) AS unlogged
    FROM logged FULL JOIN used USING (run_id, session, fragment_id)
    GROUP BY run_id ORDER BY run_id"""

_SESSIONS: Final = """
    SELECT run_id, session, status, resumed_from, input_versions, code, message, "at"
    FROM run_events WHERE run_id IN {runs} ORDER BY run_id, session, "at" LIMIT 500"""


def _lineage(rows: Rows) -> list[Block]:
    blocks: list[Block] = []
    found = rows.dicts(_CHECKPOINTS)
    if found:
        columns = ("run", "checkpoint", "env steps", "version", "evaluated", "tables", "sha256")
        table = [
            [
                text(row["run_id"]),
                row["checkpoint_id"],
                row["env_steps"],
                row["policy_version"],
                rounded(row["return_mean"]),
                _versions(row["table_versions"]),
                text(row["sha256"])[:16],
            ]
            for row in found
        ]
        note = "tables: the versions that hold all rows which trained it"
        blocks.append(Table("checkpoints", columns, table, note))
    reconciled = rows.dicts(_RECONCILED)
    if reconciled:
        names = ("run", "rows logged", "rows used", "fragments not used", "fragments not logged")
        keys = ("logged", "used", "unused", "unlogged")
        table = [[text(row["run_id"]), *(row[key] for key in keys)] for row in reconciled]
        note = "the last fragments of a session are sampled and not used"
        blocks.append(Table("rows", names, table, note))
    sessions = rows.dicts(_SESSIONS)
    head = ("at", "run", "session", "event", "resumed from", "input", "message")
    events = [
        [
            text(row["at"]),
            text(row["run_id"]),
            row["session"],
            text(row["status"]),
            text(row["resumed_from"]),
            text(row["input_versions"]),
            text(row["message"]),
        ]
        for row in sessions
    ]
    return [*blocks, Table("sessions", head, events)] if events else blocks


def _versions(told: Any) -> str:
    try:
        versions = json.loads(told or "{}")
    except ValueError:
        return text(told)
    if not isinstance(versions, dict):
        return text(told)
    return text(", ".join(f"{name} {number}" for name, number in versions.items()))


_ESTIMATES: Final = f"""
    SELECT run_id, policy_version, estimator, estimate, low, high, ess, episodes, behavior_mean,
        table_version
    FROM ope_results WHERE run_id IN {{runs}}
    ORDER BY run_id, policy_version, estimator LIMIT {_ROWS}"""


def _estimates(rows: Rows) -> list[Block]:
    found = rows.dicts(_ESTIMATES)
    if not found:
        return []
    columns = (
        "run",
        "version",
        "estimator",
        "estimate",
        "low",
        "high",
        "ESS",
        "episodes",
        "logged",
    )
    keys = ("estimate", "low", "high", "ess", "episodes", "behavior_mean")
    table = [
        [
            text(row["run_id"]),
            row["policy_version"],
            text(row["estimator"]),
            *(rounded(row[key]) for key in keys),
        ]
        for row in found
    ]
    listed = Table("estimates", columns, table, "logged: mean of the logged episodes")
    if len({(row["run_id"], row["policy_version"]) for row in found}) == 1:
        each = [Answer(r["estimator"], r["estimate"], r["low"], r["high"], r["ess"]) for r in found]
        means = {row["behavior_mean"] for row in found}
        logged = means.pop() if len(means) == 1 else None
        return [intervals("Estimates and intervals", each, logged=logged), listed]
    return [_trend(found), listed]


def _trend(found: Sequence[Mapping[str, Any]]) -> Chart:
    """Over policy versions."""
    names = sorted({(row["run_id"], row["estimator"]) for row in found})
    series = []
    for number, (run_id, estimator) in enumerate(names):
        mine = [r for r in found if (r["run_id"], r["estimator"]) == (run_id, estimator)]
        mine = [r for r in mine if r["policy_version"] is not None]
        unique = {row["policy_version"]: row for row in mine}
        series.append(
            Series(
                text(f"{estimator} {run_id}"),
                list(unique),
                [row["estimate"] for row in unique.values()],
                low=[row["low"] for row in unique.values()],
                high=[row["high"] for row in unique.values()],
                points=True,
                group=number,
            )
        )
    return Chart("Estimates and intervals", series, "policy version", "discounted return")

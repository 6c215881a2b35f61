"""What a report reads of runs: their rows in a lake, one query for each table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from workflows.reports.curves import Array, Curve

if TYPE_CHECKING:
    import pyarrow as pa

    from offline.lake import Lake

_TIME_LIMIT_S: Final = 300.0

Points = tuple[Array, Array, Array]
"""Training iterations, env steps, values: [X] each."""

_METRICS: Final = """
    SELECT run_id, key, iteration, env_steps, value FROM metrics WHERE run_id IN {runs}
    QUALIFY 1 = row_number()
        OVER (PARTITION BY run_id, key, iteration ORDER BY session DESC, "at" DESC)
    ORDER BY run_id, key, iteration"""
"""Of an iteration that a resumed run did again, what it did last."""


@dataclass(frozen=True)
class Rows:
    """Rows of runs out of a lake.

    Attributes:
        lake: where.
        run_ids: of which runs; at least one.
    """

    lake: "Lake"
    run_ids: tuple[str, ...]

    def __call__(self, query: str) -> "pa.Table":
        """The answer to a query; `{runs}` in it is the list of runs."""
        marks = ", ".join("?" * len(self.run_ids))
        uses = query.count("{runs}")
        text = query.replace("{runs}", f"({marks})")
        return self.lake.sql(text, list(self.run_ids) * uses, time_limit_s=_TIME_LIMIT_S)

    def dicts(self, query: str) -> list[dict[str, Any]]:
        """The same as dictionaries."""
        found: list[dict[str, Any]] = self(query).to_pylist()
        return found


@dataclass(frozen=True)
class RunData:
    """A run as it is reported.

    Attributes:
        run_id: which.
        about: its row of view `runs`; of a run without a lake, what its files say.
        config: its settings, nested.
        metrics: figure → its points.
    """

    run_id: str
    about: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, Points] = field(repr=False)

    def curve(self, key: str, x: str = "env_steps") -> Curve | None:
        """A figure over env steps, grad steps or iterations."""
        if key not in self.metrics:
            return None
        iterations, env_steps, values = self.metrics[key]
        if x == "training_iteration":
            return Curve(iterations, values)
        if x == "env_steps":
            return Curve(env_steps, values)
        if x not in self.metrics:
            return None
        known, _, of_known = self.metrics[x]
        return Curve(np.interp(iterations, known, of_known), values)

    def last(self, key: str) -> float | None:
        """The newest value of a figure."""
        if key not in self.metrics:
            return None
        values = self.metrics[key][2]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def runs_in(lake: "Lake", run_ids: Sequence[str]) -> list[RunData]:
    """The runs, in the order asked for; those that the lake does not know are left out."""
    rows = Rows(lake, tuple(run_ids))
    about = {row["run_id"]: row for row in rows.dicts("SELECT * FROM runs WHERE run_id IN {runs}")}
    metrics = _by_run(rows(_METRICS))
    return [
        RunData(name, about[name], json.loads(about[name]["config"] or "{}"), metrics.get(name, {}))
        for name in run_ids
        if name in about
    ]


def run_on_disk(folder: Path) -> RunData:
    """A run that logged in no lake, by its files."""
    from pipelines.run_folder import read_results

    config = json.loads((folder / "params.json").read_text())
    columns: dict[str, list[tuple[float, float, float]]] = {}
    for result in read_results(folder / "result.json"):
        for key, value in result.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                at = (result["training_iteration"], result["env_steps"], value)
                columns.setdefault(key, []).append(at)
    metrics = {
        key: (array[:, 0], array[:, 1], array[:, 2])
        for key, array in ((key, np.asarray(rows, dtype=float)) for key, rows in columns.items())
    }
    about = {
        "run_id": folder.name,
        "algo": config.get("algo"),
        "env": config.get("env", {}).get("id"),
        "seed": config.get("seed"),
    }
    return RunData(folder.name, about, config, metrics)


def _by_run(table: "pa.Table") -> dict[str, dict[str, Points]]:
    if table.num_rows == 0:
        return {}
    runs = table.column("run_id").to_numpy()
    keys = table.column("key").to_numpy()
    iterations, env_steps, values = (
        table.column(name).to_numpy().astype(np.float64)
        for name in ("iteration", "env_steps", "value")
    )
    change = (runs[1:] != runs[:-1]) | (keys[1:] != keys[:-1])
    edges = [0, *(np.flatnonzero(change) + 1).tolist(), len(runs)]
    found: dict[str, dict[str, Points]] = {}
    for start, end in pairwise(edges):
        part = (iterations[start:end], env_steps[start:end], values[start:end])
        found.setdefault(str(runs[start]), {})[str(keys[start])] = part
    return found


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted path."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= settings_of(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


_NOT_A_DIFFERENCE: Final = ("seed", "stop.", "trace.", "checkpoint.", "resources.", "storage")


def grouped(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs that differ by their seed alone, under a name that says how groups differ."""
    flat = [settings_of(run.config) for run in runs]
    names = sorted({name for settings in flat for name in settings})
    differing = [
        name
        for name in names
        if not name.startswith(_NOT_A_DIFFERENCE)
        and len({json.dumps(settings.get(name), sort_keys=True) for settings in flat}) > 1
    ]
    found: dict[str, list[RunData]] = {}
    for run, settings in zip(runs, flat, strict=True):
        parts = [f"{name}={_short(settings.get(name))}" for name in differing if name != "algo"]
        algo, env = run.about.get("algo") or "run", run.about.get("env") or ""
        parts = [part for part in parts if not part.startswith("env.id=")]
        found.setdefault(" ".join([str(algo), str(env), *parts]).strip(), []).append(run)
    return found


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)

"""What is known of a sweep's trials: kept beside their runs, and shown."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

SWEEP: Final = "sweep.json"
TRIALS: Final = "trials.json"


@dataclass
class Record:
    """A sweep's folder: `sweep.json` says what it is, `trials.json` how its trials are.

    Args:
        folder: `<storage>/<sweep id>`.
        about: what `sweep.json` says beside its status.
    """

    folder: Path
    about: dict[str, Any]
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """A sweep as its folder tells it, its status in `about`."""
        record = cls(folder, json.loads((folder / SWEEP).read_text()))
        record.take_up()
        return record

    def begin(self) -> None:
        """Note that the sweep runs."""
        if (self.folder / TRIALS).is_file():
            self.take_up()
        self._write("running")

    def take_up(self) -> None:
        """Go by the trials that the folder has."""
        known = json.loads((self.folder / TRIALS).read_text())
        self.trials = {trial["trial_id"]: trial for trial in known}

    def end(self, status: str) -> None:
        """Note how it ended."""
        self._write(status)

    def note(self, trials: Sequence[Any]) -> None:
        """Take in Tune's trials as they are now."""
        for trial in trials:
            self.trials[trial.trial_id] = self._row(trial)
        _replace(self.folder / TRIALS, list(self.trials.values()))

    def ordered(self) -> list[dict[str, Any]]:
        """The trials, the best first, those without a figure last."""
        sign = -1 if self.about["mode"] == "max" else 1
        return sorted(self.trials.values(), key=lambda t: _rank(self.figure(t), sign))

    def figure(self, trial: Mapping[str, Any]) -> float | None:
        """What the sweep compares."""
        value = trial["metrics"].get(self.about["metric"])
        is_number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_number else None

    def _row(self, trial: Any) -> dict[str, Any]:
        metrics = {
            key: value
            for key, value in (trial.last_result or {}).items()
            if isinstance(value, int | float | str)
            and not (isinstance(value, float) and not math.isfinite(value))
            and key not in ("trial_id", "hostname")
        }
        # Of a trial that is begun again Tune has forgotten them until its first result.
        before = self.trials.get(trial.trial_id, {})
        run_id: Any = metrics.get("run_id") or before.get("run_id")
        return {
            "trial_id": trial.trial_id,
            "run_id": run_id,
            "status": str(trial.status).lower(),
            "config": {key: trial.config.get(key) for key in self.about["parameters"]},
            "metrics": metrics or before.get("metrics", {}),
            "checkpoint": self._checkpoint(run_id),
            "error": _error_of(trial),
        }

    def _checkpoint(self, run_id: str | None) -> str | None:
        from pipelines.checkpoint import numbered

        found = numbered(self.folder.parent / run_id / "checkpoints") if run_id else []
        return str(found[-1]) if found else None

    def _write(self, status: str) -> None:
        _replace(self.folder / SWEEP, {**self.about, "status": status})
        _replace(self.folder / TRIALS, list(self.trials.values()))


def about(sweep: Any, *, sweep_id: str) -> dict[str, Any]:
    """What `sweep.json` says of a sweep."""
    return {
        "sweep_id": sweep_id,
        "algo": sweep.spec.algo,
        "env": sweep.spec.env,
        "metric": sweep.spec.metric,
        "mode": sweep.spec.mode,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": list(sweep.spec.sweep),
        "file": sweep.text,
    }


def table_of(record: Record, *, limit: int = 50) -> Any:
    """A rich table of the trials, the best first."""
    from rich import box
    from rich.table import Table

    from pipelines.config_errors import printable, shown
    from workflows.progress import number

    names = record.about["parameters"]
    table = Table(box=box.SIMPLE_HEAD, title=record.about["sweep_id"], title_justify="left")
    for column in ("trial", "status", *names):
        table.add_column(column)
    for column in (record.about["metric"], "iteration", "env steps", "time"):
        table.add_column(column, justify="right")
    for trial in record.ordered()[:limit]:
        metrics = trial["metrics"]
        varied = (trial["config"].get(name) for name in names)
        table.add_row(
            printable(str(trial["run_id"] or trial["trial_id"])),
            trial["status"],
            *(f"{v:.4g}" if isinstance(v, float) else shown(v, limit=40) for v in varied),
            number(record.figure(trial)),
            f"{metrics.get('training_iteration', 0):,}",
            f"{metrics.get('env_steps', 0):,}",
            f"{metrics.get('time_s', 0):.0f} s",
        )
    return table


def _rank(value: float | None, sign: int) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else sign * value)


def _error_of(trial: Any) -> str | None:
    path = trial.error_file
    if not path or not Path(path).is_file():
        return None
    lines = Path(path).read_text(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else None


def _replace(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str))
    os.replace(temporary, path)

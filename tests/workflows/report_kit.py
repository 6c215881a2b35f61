"""Storages that reports are made of: tables written by hand, with figures known beforehand."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from offline.lake import Lake
from offline.registry import Entry, Registry, manifest_sha256
from offline.storage import Storage
from offline.workflow_log import WHOLE, Event, WorkflowLog
from tests.offline.sql_kit import append, event, metric, small_lake

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\x1b[31m"
SEEDS = ("seed-1", "seed-2", "seed-3")


def storage_of(folder: Path) -> Path:
    """A storage with everything of this kit: runs, traces, frames, a sweep, a workflow."""
    lake = lake_of(folder)
    logged_of(lake)
    frames_of(lake)
    sweep_of(folder)
    workflow_of(lake.storage)
    return folder


def data_of(page: str) -> Any:
    """What a page was made of, as its script reads it."""
    begin = page.index(">", page.index('<script type="application/json" id="data">')) + 1
    return json.loads(page[begin : page.index("</script>", begin)])


def lake_of(storage: Path) -> Lake:
    """The small lake, three seeds of one setting, and a run whose every text is hostile."""
    small_lake(storage / "lake")
    config = json.dumps({"algo": "ppo", "env": {"id": "CartPole-v1"}, "optim": {"lr": 0.001}})
    runs = [
        event(name, 0, "finished", 1, algo="ppo", env="CartPole-v1", seed=i, config=config)
        for i, name in enumerate(SEEDS)
    ]
    runs.append(
        event("hostile", 0, "failed", 1, algo=HOSTILE, env=HOSTILE, config="{}", message=HOSTILE)
    )
    metrics = [
        metric(name, k, "episode_return_mean", float(k * (i + 1)))
        for i, name in enumerate(SEEDS)
        for k in range(1, 6)
    ]
    metrics += [
        metric("hostile", 1, "learner/" + HOSTILE, 1.0),
        metric("hostile", 2, "learner/" + HOSTILE, 2.0),
    ]
    failure = {
        "run_id": "hostile",
        "session": 0,
        "kind": HOSTILE,
        "count": 1,
        "message": HOSTILE * 400,
    }
    found = Lake(storage / "lake")
    append(found.storage, "runs", runs)
    append(found.storage, "metrics", metrics)
    append(found.storage, "failures", [failure | {"at": datetime(2026, 5, 1, tzinfo=UTC)}])
    return found


def sweep_of(storage: Path, name: str = "lr") -> Path:
    """A sweep of six trials: the higher the rate, the higher the return; the last one failed."""
    folder = storage / name
    folder.mkdir(parents=True)
    rates = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    trials = [
        {
            "trial_id": f"t{i}",
            "run_id": SEEDS[i] if i < len(SEEDS) else f"lr-{i}",
            "status": "terminated" if i < 5 else "error",
            "config": {"optim.lr": rate, "optim.name": "adam" if i % 2 else "sgd", "seed": i},
            "metrics": {"episode_return_mean": 10.0 * i, "env_steps": 1000} if i < 5 else {},
            "checkpoint": f"/x/{i}" if i < 5 else None,
            "error": None if i < 5 else HOSTILE,
        }
        for i, rate in enumerate(rates)
    ]
    about = {
        "sweep_id": name,
        "algo": "ppo",
        "env": "CartPole-v1",
        "metric": "episode_return_mean",
        "mode": "max",
        "status": "finished",
        "created_at": "2026-05-01T10:00:00+00:00",
        "parameters": ["optim.lr", "optim.name", "seed"],
        "file": "algo: ppo\n# " + HOSTILE,
    }
    (folder / "sweep.json").write_text(json.dumps(about))
    (folder / "trials.json").write_text(json.dumps(trials))
    return folder


def workflow_of(storage: Storage, name: str = "nightly") -> str:
    """Three runs: one promoted, one whose gate held it back, one that failed; the checkpoint."""
    promoted = Path(storage.uri).parent / "promoted"
    promoted.mkdir()
    (promoted / "manifest.json").write_text("{}")
    log = WorkflowLog(storage, name)
    start = datetime(2026, 5, 1, 3, tzinfo=UTC)
    for day, (gain, ends) in enumerate([(2.0, "succeeded"), (-1.0, "succeeded"), (None, "failed")]):
        at = start + timedelta(days=day)
        usual: dict[str, Any] = {
            "workflow": name,
            "logical_time": at,
            "attempt": 1,
            "owner": f"o{day}",
        }
        log.claim(Event(step=WHOLE, status="started", **usual), lease_s=1, is_dead=lambda _: False)
        log.add(Event(step="learn", status="started", **usual))
        outputs = {"checkpoint": "/x", "episode_return_mean": 10.0 + day, "rows": 7}
        run_id = SEEDS[day]
        if ends == "failed":
            log.add(Event(step="learn", status="failed", message=HOSTILE, **usual))
        else:
            log.add(
                Event(step="learn", status="succeeded", outputs=outputs, run_id=run_id, **usual)
            )
            gate = {"gain": gain, "low": gain - 1, "high": gain + 1, "passed": gain > 1}
            log.add(Event(step="gate", status="succeeded", outputs=gate, **usual))
        log.add(Event(step=WHOLE, status=ends, **usual))
    digest = manifest_sha256(str(promoted))
    usual = {"workflow": name, "logical_time": start}
    entry = Entry("cart", "champion", str(promoted), digest, "seed-1", **usual)
    Registry(storage).set(entry)
    return str(promoted)


def frames_of(lake: Lake, count: int = 6) -> None:
    """Run `r`, whose observations are pictures: step t is grey, 40 t in all pixels."""
    from tests.offline.traces_kit import frame_rows, put, run_row

    grey = (40 * np.arange(count)).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (count, 8, 6, 3)).copy()
    put(lake, "steps", frame_rows(lake, frames))
    ended = {"run_id": "r", "session": 0, "kind": "train", "episode_id": "r/frames", "return": 15.0}
    put(lake, "episodes", [{**ended, "length": count, "terminated": True, "truncated": False}])
    put(lake, "runs", [run_row("r", algo="ppo", env="frames", config={})])


def logged_of(lake: Lake) -> None:
    """Run `run`, rolled out for real in CartPole."""
    from tests.offline.traces_kit import log_run, put, run_row
    from tests.rollout_kit import env_spec

    log_run(lake, env_spec("CartPole-v1"), count=6, num_envs=4, steps=64)
    put(lake, "runs", [run_row("run", algo="ppo", env="CartPole-v1", config={})])

"""What a run is before it starts: its folder, its name, its rows, and what it goes on from."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from offline.storage import Storage
from pipelines.address import is_address
from pipelines.checkpoint import Checkpoint
from pipelines.config import AlgorithmConfig
from pipelines.config_errors import ConfigError, Problem
from pipelines.errors import CheckpointError, RunExistsError, StorageError
from pipelines.offline_data import DataTask, data_of, pinned
from pipelines.remote import Mirror, address_of, folder_for
from pipelines.run_folder import check_unlocked
from pipelines.tracing import lake_of
from rl_ops.env_id import NO_ENV


def local_folder(storage: str | os.PathLike[str]) -> Path:
    """The folder of runs, or the one that stands for an address.

    Raises:
        StorageError: it is an address of another kind.
        LakeError: it is no good address.
    """
    if is_address(storage):
        return folder_for(str(storage))
    if "://" in str(storage):
        raise StorageError(f"storage {storage} is neither a folder nor s3://bucket/prefix")
    return Path(storage).expanduser()


def prepare(mirror: Mirror, *, resume_at: int | None) -> None:
    """Make the folder of a run what the object store has of it.

    Args:
        mirror: of the run.
        resume_at: iteration of the checkpoint that it goes on from, which is here; None for a
            new run.

    Raises:
        RunExistsError: a run of that name is there already, or is running on this machine.
    """
    if resume_at is not None:
        check_unlocked(mirror.folder)
        mirror.fetch(resume_at)
        mirror.set_aside(resume_at)
        return
    if mirror.exists():
        raise RunExistsError(
            f"{mirror.address} exists already: another run has that name. Choose another --name, "
            f"or go on with it by --resume {mirror.run_id}"
        )
    mirror.begin_anew()


def pinned_rows(config: AlgorithmConfig, storage: Path) -> tuple[DataTask | None, AlgorithmConfig]:
    """The logged rows that a run learns from, and its configuration with their version."""
    data = data_of(config)
    if data is None:
        return None, config
    lake = lake_of(config.trace, storage) if data.lake is None else Storage.at(data.lake)
    task = pinned(data, lake)
    if config.env.id == NO_ENV and config.evaluation.period_iterations is not None:
        what = f"env is {NO_ENV!r}, so there is nothing to evaluate in"
        raise ConfigError(Problem("evaluation.period_iterations", what, "leave it out"))
    version = {"offline.version": task.spec.version, "offline.timestamp": None}
    return task, config.with_overrides(version)


def made_up_name(config: AlgorithmConfig, checkpoint: Checkpoint | None) -> str:
    """The name of the run that goes on, or a new one."""
    if checkpoint is not None:
        return str(checkpoint.state["run_id"])
    env = "".join(ch if ch.isalnum() or ch in "-_." else "-" for ch in config.env.id)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{config.algo}-{env}-{stamp}-{uuid.uuid4().hex[:6]}"


def storage_of(checkpoint: Checkpoint | None) -> str | None:
    """The storage of the run whose checkpoint it is; None where it lies in no run's folder."""
    if checkpoint is None:
        return None
    path = checkpoint.path.absolute()
    run = path.parent.parent
    is_run = path.parent.name == "checkpoints" and (run / "params.json").is_file()
    return address_of(run.parent) if is_run else None


def check_same_policy(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    """Refuse a checkpoint of another policy.

    Raises:
        CheckpointError: says what differs.
    """
    # Through JSON, where tuples are lists, as they were saved.
    saved, here = _flat(checkpoint.state["policy"]), _flat(json.loads(json.dumps(spec)))
    problems = [
        f"{key}: checkpoint {saved.get(key)}, here {here.get(key)}"
        for key in sorted({*saved, *here})
        if saved.get(key) != here.get(key)
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is of another policy: " + "; ".join(problems)
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, part in tree.items() for k, v in _flat(part, f"{prefix}{key}.").items()}

"""A training run for tests that kill it: `python -m tests.pipelines.lake_child STORAGE`.

Goes on from the newest whole checkpoint of its run, or begins a run of a new name when the last
one was killed before it had any.
"""

import contextlib
import sys
from pathlib import Path

from pipelines import Pipeline, PPOConfig
from pipelines.errors import CheckpointError
from workflows.runs import newest_whole

ITERATIONS = 6
ROWS = 2 * 16
"""Of a version; Pendulum spends none on resets."""


def config() -> PPOConfig:
    return PPOConfig(
        env="Pendulum-v1",
        rollout={"num_envs": 2, "fragment_steps": 16},
        model={"hidden": (8,)},
        num_epochs=1,
        checkpoint={"period_iterations": 2},
        trace={"commit_interval_s": 0.01},
        stop={"training_iteration": ITERATIONS},
    )


def main(storage: Path) -> None:
    runs = sorted(path for path in storage.glob("run*") if path.is_dir())
    options = {"storage": storage, "name": f"run{len(runs)}"}
    if runs:
        with contextlib.suppress(CheckpointError):
            options = {"resume": newest_whole(runs[-1]).path}
    if "resume" in options and int(options["resume"].name) >= ITERATIONS:
        return  # killed after its last checkpoint: it has ended
    with Pipeline(config(), debug=True, **options) as pipeline:
        for _ in pipeline.stream():
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))

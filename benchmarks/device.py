"""Gradient steps a second of learners on each device, over widths of network and minibatch.

    python -m benchmarks.device [--devices cpu cuda] [--algos dqn sac bc iql cql] [--out FILE.json]

Rows are random numbers in memory: what is timed is drawing a minibatch and learning from it.
Devices take turns, so that a busy machine slows both; medians over the rounds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines import config_class
from pipelines.training import plan_for
from rl_ops import columns as c
from rl_ops.learner import World
from rl_ops.row_data import RowData

ENVS = {"dqn": "CartPole-v1", "bc": "Pendulum-v1", "iql": "Pendulum-v1"}
SIZES = ((256, 256), (1024, 256), (1024, 4096))
"""(width of both hidden layers, rows of a minibatch)."""
ROWS = 100_000
ROUNDS = 3


def learner_of(algo: str, device: str, *, width: int, rows: int) -> Any:
    """A learner of logged rows, with random ones on its device."""
    config = config_class(algo)(
        env=ENVS.get(algo, "Pendulum-v1"),
        offline={},
        minibatch_rows=rows,
        model={"hidden": (width, width)},
        learner={"device": device},
        trace={"enabled": False},
    )
    plan = plan_for(config, run_id="device")
    place = torch.device(device)
    learner = plan.dataflow.learner(config, plan.policy, world=World(device=place))
    learner.seed(0)
    rng = np.random.default_rng(0)
    shape = plan.policy.obs_connectors.output_space.shape
    space = plan.policy.action_connectors.input_space
    obs = torch.from_numpy(rng.standard_normal((ROWS + 1, *shape)).astype(np.float32))
    if space.shape:
        action = torch.from_numpy(rng.uniform(-0.9, 0.9, (ROWS, *space.shape)).astype(np.float32))
    else:
        action = torch.from_numpy(rng.integers(0, space.n, ROWS))
    index = torch.arange(ROWS)
    columns = {c.ACTION: action, c.RETURN_N: torch.randn(ROWS)}
    columns[c.BOOTSTRAP_DISCOUNT] = torch.full((ROWS,), 0.99)
    learner.data = RowData(obs, index, columns, bootstrap_row=index + 1, device=place)
    return learner


def steps_a_second(learner: Any, seconds: float) -> float:
    """Gradient steps in about so many seconds."""
    count, chunk, start = 0, 1, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        learner.update_logged(chunk)  # reads its means, so the device has finished
        count += chunk
        chunk = min(2 * chunk, 100)
    return count / took


def measure(algos: Sequence[str], devices: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """One row for each algorithm and size: device → gradient steps a second."""
    found = []
    for algo in algos:
        for width, rows in SIZES:
            learners = {d: learner_of(algo, d, width=width, rows=rows) for d in devices}
            for learner in learners.values():
                learner.update_logged(5)
            rates: dict[str, list[float]] = {device: [] for device in devices}
            for _ in range(ROUNDS):
                for device, learner in learners.items():
                    rates[device].append(steps_a_second(learner, seconds))
            row = {"algo": algo, "width": width, "rows": rows}
            found.append(row | {d: round(statistics.median(r), 1) for d, r in rates.items()})
            sys.stdout.write(json.dumps(found[-1]) + "\n")
            sys.stdout.flush()
    return found


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--algos", nargs="+", default=["dqn", "sac", "bc", "iql", "cql"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = measure(given.algos, given.devices, given.seconds)
    if given.out:
        names = {"cuda": torch.cuda.get_device_name()} if "cuda" in given.devices else {}
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "devices": names, "threads": given.threads}, file, indent=1)


if __name__ == "__main__":
    main()

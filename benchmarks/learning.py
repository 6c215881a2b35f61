"""Returns that the tuned examples reach: several seeds each, beside the untrained baseline.

    python -m benchmarks.learning [--seeds 0 1 2] [--only cartpole-ppo ...] [--write]

Runs are in one process (`debug`), which gives the same rows and the same metrics as Ray at lag 0
(tests/pipelines/test_runtime.py), with nothing to start. `--write` renews docs/learning.md.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import AlgorithmConfig
from pipelines.config_files import load_config_file
from pipelines.evaluation import evaluate_policy
from pipelines.loading import build_config, file_layer, json_layer
from pipelines.training import plan_for
from rl_ops.policy import Policy

EXAMPLES = Path(__file__).resolve().parents[1] / "workflows" / "examples"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "learning.md"
EVALUATION_EPISODES = 100

REFERENCES: dict[str, tuple[float, float]] = {
    "cartpole-ppo": (500.0, 500.0),
    "cartpole-a2c": (500.0, 500.0),
    "acrobot-ppo": (-73.5, -80.0),
    "acrobot-a2c": (-83.4, -90.0),
    "pendulum-ppo": (-172.0, -200.0),
    "pendulum-a2c": (-163.0, -200.0),
}
"""example → (reference return of the SB3 zoo, bar: what the mean over seeds must reach)."""


@dataclass(frozen=True)
class Outcome:
    """One training run, evaluated."""

    example: str
    seed: int
    untrained: float
    trained: float
    env_steps: int
    wall_s: float


def config_of(example: str, *, seed: int, **changes: Any) -> AlgorithmConfig:
    """A tuned example's configuration with another seed."""
    found = load_config_file(EXAMPLES / f"{example}.yaml")
    layers = [file_layer(found), json_layer(json.dumps({"seed": seed, **changes}))]
    config: AlgorithmConfig = build_config(found.values["algo"], layers)
    return config


def evaluated(policy: Policy, config: AlgorithmConfig, *, seed: int) -> float:
    """Mean greedy return over the evaluation episodes."""
    env = plan_for(config, run_id="evaluation").rollout.env
    result = evaluate_policy(policy, env, episodes=EVALUATION_EPISODES, seed=10_000 + seed)
    return float(np.mean(result.returns))


def run(config: AlgorithmConfig, *, example: str) -> Outcome:
    """Train to the example's stop, evaluating before and after."""
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as storage,
        config.build(debug=True, storage=storage) as pipeline,
    ):
        untrained = evaluated(pipeline.get_policy(), config, seed=config.seed)
        *_, result = pipeline.stream()
        trained = evaluated(pipeline.get_policy(), config, seed=config.seed)
    wall_s = time.perf_counter() - start
    return Outcome(example, config.seed, untrained, trained, result["env_steps"], wall_s)


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table, a row an example."""
    lines = ["| example | reference | mean | seeds | untrained | env steps | s a seed |"]
    lines.append("|---|---|---|---|---|---|---|")
    for example in dict.fromkeys(o.example for o in outcomes):
        of = [o for o in outcomes if o.example == example]
        reference = REFERENCES.get(example)
        seeds = ", ".join(f"{o.trained:.1f}" for o in of)
        cells = [
            example,
            "(must fail)" if reference is None else f"{reference[0]:g}",
            f"{np.mean([o.trained for o in of]):.1f}",
            seeds,
            f"{np.mean([o.untrained for o in of]):.1f}",
            f"{max(o.env_steps for o in of):,}",
            f"{np.mean([o.wall_s for o in of]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def negative_control(seed: int) -> AlgorithmConfig:
    """Plain PPO on MountainCar-v0, which never sees a reward but -1 (CleanRL documents it)."""
    values = {"env": "MountainCar-v0", "seed": seed, "stop": {"env_steps": 100_000}}
    values |= {"rollout": {"num_envs": 8, "fragment_steps": 128}}
    config: AlgorithmConfig = build_config("ppo", [json_layer(json.dumps(values))])
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[*REFERENCES, "mountaincar-ppo-plain"])
    parser.add_argument("--write", action="store_true", help="renew docs/learning.md")
    options = parser.parse_args()
    outcomes = []
    for example in options.only:
        for seed in options.seeds:
            is_control = example not in REFERENCES
            config = negative_control(seed) if is_control else config_of(example, seed=seed)
            outcomes.append(run(config, example=example))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    print(table(outcomes))
    if options.write:
        heading, _, _ = PAGE.read_text().partition("<!-- measured -->")
        stamp = f"<!-- measured -->\n\nMeasured {date.today().isoformat()}, two cores.\n\n"
        PAGE.write_text(heading + stamp + table(outcomes) + "\n")


if __name__ == "__main__":
    main()

"""Returns that the tuned examples reach: several seeds each, beside the untrained baseline.

    python -m benchmarks.learning [--seeds 0 1 2] [--only cartpole-ppo ...] [--write]

Runs are in one process (`debug`), which gives the same rows and the same metrics as Ray at lag 0
(tests/pipelines/test_runtime.py), with nothing to start. `--write` renews the rows of what was
measured in docs/learning.md.
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
MARKER = "<!-- measured -->"

REFERENCES: dict[str, tuple[float, float]] = {
    "cartpole-ppo": (500.0, 500.0),
    "cartpole-a2c": (500.0, 500.0),
    "acrobot-ppo": (-73.5, -80.0),
    "acrobot-a2c": (-83.4, -90.0),
    "acrobot-dqn": (-76.6, -80.0),
    "pendulum-ppo": (-172.0, -200.0),
    "pendulum-a2c": (-163.0, -200.0),
    "cartpole-impala": (450.0, 450.0),
    "cartpole-appo": (450.0, 450.0),
    "cartpole-ddppo": (500.0, 500.0),
    "cartpole-dqn": (500.0, 490.0),
    "cartpole-apex": (500.0, 475.0),
    "pendulum-sac": (-157.0, -170.0),
    "pendulum-td3": (-152.0, -170.0),
    "pendulum-tqc": (-150.0, -170.0),
    "mountaincarcontinuous-td3": (93.5, 92.0),
    "mountaincarcontinuous-sac": (94.7, 92.0),
}
"""example → (reference return, of docs/learning.md's sources; bar: what the mean must reach)."""


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
    """A tuned example's configuration with another seed, and no event files, which nobody reads."""
    changes = {"reporting": {"tensorboard": False}, **changes}
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


HEADER = (
    "| example | reference | mean | seeds | untrained | env steps | s a seed | measured |",
    "|---|---|---|---|---|---|---|---|",
)


def rows(outcomes: list[Outcome], *, measured: str) -> dict[str, str]:
    """Example → its row of the Markdown table, with the date on which it was measured."""
    lines = {}
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
            measured,
        ]
        lines[example] = "| " + " | ".join(cells) + " |"
    return lines


def renewed(page: str, new: dict[str, str]) -> str:
    """The page with rows replaced or added; those of other examples stay."""
    heading, marker, measured = page.partition(MARKER)
    if not marker:
        raise ValueError(f"the page has no {MARKER}, after which its table comes")
    lines = [line for line in measured.splitlines() if line.startswith("| ")]
    old = {line.split("|")[1].strip(): line for line in lines if line != HEADER[0]}
    return "\n".join([heading + marker, "", *HEADER, *(old | new).values(), ""])


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
    parser.add_argument("--write", action="store_true", help="renew rows of docs/learning.md")
    options = parser.parse_args()
    outcomes = []
    for example in options.only:
        for seed in options.seeds:
            is_control = example not in REFERENCES
            config = negative_control(seed) if is_control else config_of(example, seed=seed)
            outcomes.append(run(config, example=example))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    new = rows(outcomes, measured=date.today().isoformat())
    print("\n".join([*HEADER, *new.values()]))
    if options.write:
        PAGE.write_text(renewed(PAGE.read_text(), new))


if __name__ == "__main__":
    main()

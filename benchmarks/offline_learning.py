"""Returns that the tuned examples reach from logged rows, beside the behaviour that logged them.

    python -m benchmarks.offline_learning [--storage D] [--seeds 0 1 2] [--only cartpole-iql ...]
                                          [--levels medium mixed] [--write]

Makes the data sets in the storage first (`millrace example run make-dataset-...`), unless it has
them. `--write` renews the rows of what was measured in docs/learning.md.
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

from benchmarks.learning import EXAMPLES, PAGE, evaluated
from offline.lake import Lake
from pipelines.config_files import load_config_file
from pipelines.loading import build_config, file_layer, json_layer
from workflows.datasets import Making, load_dataset

REFERENCES = {"cartpole-bc": 350.0, "cartpole-marwil": 250.0}
REFERENCES |= {"pendulum-iql": -200.0, "pendulum-cql": -700.0}
"""example → what RLlib's example has to reach, on data of its own."""
LEVELS = ("random", "medium", "expert")
MARKER = "<!-- measured offline -->"
HEADER = (
    "| example | data | behaviour | reference | mean | seeds | updates | s a seed | measured |",
    "|---|---|---|---|---|---|---|---|---|",
)
LOGGED = sorted(
    path.stem for path in EXAMPLES.glob("*.yaml") if "offline" in load_config_file(path).values
)
"""Examples that learn from logged rows."""


@dataclass(frozen=True)
class Outcome:
    """One training run on logged rows, evaluated.

    Attributes:
        example: its name.
        data: "medium", "mixed" (all levels), or "as it says".
        seed: of the run.
        behaviour: mean return of the data's episodes.
        untrained: of the policy before.
        trained: of the policy after.
        updates: minibatches learned from.
        wall_s: of training.
    """

    example: str
    data: str
    seed: int
    behaviour: float
    untrained: float
    trained: float
    updates: int
    wall_s: float


def make_data(storage: Path, name: str) -> None:
    """Make a data set's levels in a storage that does not have them."""
    dataset = load_dataset(EXAMPLES / f"make-dataset-{name}.yaml")
    Making(dataset, storage, rows=dataset.config.rows, levels=LEVELS).run()


def run(example: str, storage: Path, *, seed: int, data: str = "as it says") -> Outcome:
    """Train an example on the data of `storage`, in one process."""
    found = load_config_file(EXAMPLES / f"{example}.yaml")
    changes: dict[str, Any] = {"seed": seed, "reporting": {"tensorboard": False}}
    layers = [file_layer(found), json_layer(json.dumps(changes))]
    config = build_config(found.values["algo"], layers)
    name = config.env.id.partition("-")[0].lower()
    runs = {"medium": [f"{name}-medium"], "mixed": [f"{name}-{level}" for level in LEVELS]}
    if data in runs:
        config = config.with_overrides({"offline.where": [["run_id", "in", runs[data]]]})
    lake = Lake(storage / "lake")
    config = config.with_overrides({"offline.lake": str(storage / "lake")})
    returns = lake.episodes(where=[tuple(x) for x in config.offline.where]).to_arrow()
    behaviour = float(np.mean(returns.column("return").to_numpy()))
    with (
        tempfile.TemporaryDirectory() as own,
        config.build(debug=True, storage=own) as pipeline,
    ):
        untrained = evaluated(pipeline.get_policy(), config, seed=seed)
        start = time.perf_counter()
        *_, result = pipeline.stream()
        wall_s = time.perf_counter() - start
        trained = evaluated(pipeline.get_policy(), config, seed=seed)
    updates = result["training_iteration"] * config.offline.updates_per_iteration
    return Outcome(example, data, seed, behaviour, untrained, trained, updates, wall_s)


def rows(outcomes: list[Outcome], *, measured: str) -> dict[str, str]:
    """Example and data → their row of the Markdown table."""
    lines = {}
    for example, data in dict.fromkeys((o.example, o.data) for o in outcomes):
        of = [o for o in outcomes if (o.example, o.data) == (example, data)]
        reference = REFERENCES.get(example)
        cells = [
            *(example, data, f"{of[0].behaviour:.1f}"),
            "-" if reference is None else f"{reference:g}",
            f"{np.mean([o.trained for o in of]):.1f}",
            ", ".join(f"{o.trained:.1f}" for o in of),
            f"{of[0].updates:,}",
            f"{np.mean([o.wall_s for o in of]):.0f}",
            measured,
        ]
        lines[f"{example} {data}"] = "| " + " | ".join(cells) + " |"
    return lines


def renewed(page: str, new: dict[str, str]) -> str:
    """The page with rows replaced or added; those of other examples stay."""
    before, marker, rest = page.partition(MARKER)
    if not marker:
        raise ValueError(f"the page has no {MARKER}, after which its table comes")
    text = rest.splitlines()
    end = next((i for i, line in enumerate(text) if line and line[0] != "|"), len(text))
    lines = [line for line in text[:end] if line.startswith("| ")]
    cells = {line: [cell.strip() for cell in line.split("|")] for line in lines}
    old = {f"{cells[line][1]} {cells[line][2]}": line for line in lines if line != HEADER[0]}
    table = [marker, "", *HEADER, *(old | new).values(), ""]
    return before + "\n".join([*table, *text[end:], ""])


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=LOGGED)
    parser.add_argument("--levels", nargs="+", default=["as it says"])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        storage = options.storage or Path(own)
        if not (storage / "lake").is_dir():
            for name in sorted({example.partition("-")[0] for example in options.only}):
                make_data(storage, name)
        outcomes = []
        for example in options.only:
            for data in options.levels:
                for seed in options.seeds:
                    outcomes.append(run(example, storage, seed=seed, data=data))
                    print(json.dumps(asdict(outcomes[-1])), flush=True)
    new = rows(outcomes, measured=date.today().isoformat())
    print("\n".join([*HEADER, *new.values()]))
    if options.write:
        PAGE.write_text(renewed(PAGE.read_text(), new))


if __name__ == "__main__":
    main()

"""Tuned examples on logged rows against the behaviour that logged them, three seeds each."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.offline_learning import (
    HEADER,
    LOGGED,
    MARKER,
    REFERENCES,
    Outcome,
    make_data,
    renewed,
    rows,
    run,
)

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]
SEEDS = range(3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with random, medium and expert CartPole and Pendulum."""
    storage = tmp_path_factory.mktemp("data")
    for name in ("cartpole", "pendulum"):
        make_data(storage, name)
    return storage


@pytest.mark.parametrize("example", LOGGED)
def test_the_example_beats_the_behaviour_and_its_reference(example: str, data: Path) -> None:
    outcomes = [run(example, data, seed=seed) for seed in SEEDS]
    mean = np.mean([o.trained for o in outcomes])
    assert mean > outcomes[0].behaviour
    assert mean >= REFERENCES.get(example, -np.inf)


@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_on_mixed_data_iql_and_cql_beat_bc(env: str, data: Path) -> None:
    iql, cql, bc = (
        np.mean([run(f"{env}-{algo}", data, seed=s, data="mixed").trained for s in SEEDS])
        for algo in ("iql", "cql", "bc")
    )
    assert min(iql, cql) > bc


def test_renewing_one_row_keeps_the_others_and_the_rest_of_the_page() -> None:
    old = "| cartpole-bc | mixed | 55.0 | 350 | 1.0 | 1.0 | 10 | 2 | 2026-01-01 |"
    page = "\n".join(["# Learning", MARKER, "", *HEADER, old, "", "<!-- more -->", "end", ""])
    outcome = Outcome("pendulum-cql", "mixed", 0, -600.0, -1200.0, -200.0, 6000, 80.0)
    lines = renewed(page, rows([outcome], measured="2026-01-02")).splitlines()
    fresh = "| pendulum-cql | mixed | -600.0 | -700 | -200.0 | -200.0 | 6,000 | 80 | 2026-01-02 |"
    assert lines == ["# Learning", MARKER, "", *HEADER, old, fresh, "", "<!-- more -->", "end"]

"""`millrace select` on real runs: one that has an environment, one that has logged rows only."""

import json
import math
import shlex
import shutil

import numpy as np
import pytest

from offline.lake import Lake
from offline.ope.results import Subject
from offline.ope.settings import Estimate, Evaluation
from pipelines import IQLConfig, Pipeline
from pipelines.checkpoint import Checkpoint, load_policy
from pipelines.evaluation import Evaluation as Simulated
from rl_ops.env_id import NO_ENV
from tests.pipelines.logged_kit import log_random
from tests.workflows.conftest import Cli
from workflows.ope import Answer
from workflows.select_rows import AUTO, Row, criterion, ranked, spearman

ITERATIONS = 4
ACTING = ("--episodes", 5, "--seed", 3)
# A tiny discount converges in a few renewals.
QUICK = ("--gamma", "0.2", "--folds", "2")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A short PPO run with a checkpoint of every iteration, and its own rows."""
    cli = Cli(tmp_path_factory.mktemp("select") / "storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.train.prestart", lambda **_: None)
        words = ("--set", "checkpoint.period_iterations=1", "--set", "optim.lr=0.02")
        result = cli.train(*words, iterations=ITERATIONS)
    assert result.exit_code == 0, result.output
    return cli.storage


@pytest.fixture
def trained(millrace, template):
    shutil.copytree(template, millrace.storage)
    return millrace


@pytest.fixture(scope="module")
def logged_only(tmp_path_factory):
    """An IQL run on logged rows, without an environment, and its two checkpoints."""
    storage = tmp_path_factory.mktemp("rows") / "storage"
    lake = log_random("CartPole-v1", storage, rows=400)
    config = IQLConfig(
        env=NO_ENV,
        offline={"lake": lake, "updates_per_iteration": 5},
        minibatch_rows=32,
        reporting={"tensorboard": False},
    )
    with Pipeline(config, storage=storage, name="iql", debug=True) as pipeline:
        for _ in range(2):
            pipeline.train()
            pipeline.save()
    return storage


@pytest.fixture
def iql(millrace, logged_only):
    shutil.copytree(logged_only, millrace.storage)
    return millrace


def select(cli, *words):
    return cli("select", *words, "--storage", cli.storage)


def found(cli, *words):
    result = select(cli, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def checkpoints(cli, run="run"):
    return sorted((cli.run_folder(run) / "checkpoints").iterdir(), key=lambda p: int(p.name))


def test_checkpoints_are_in_the_order_that_evaluate_gives(trained) -> None:
    record = found(trained, "run", *ACTING, "--no-log")
    means = {}
    for path in checkpoints(trained):
        own = json.loads(trained("evaluate", path, *ACTING, "--no-log", "--json").stdout)
        means[str(path)] = own["episode_return_mean"]
    assert len(set(means.values())) > 1
    told = {c["checkpoint"]: c["simulated"]["episode_return_mean"] for c in record["checkpoints"]}
    assert told == means
    scores = [c["score"] for c in record["checkpoints"]]
    assert scores == sorted(means.values(), reverse=True)
    assert (record["by"], record["best"]) == ("return", max(means, key=means.__getitem__))
    assert all(c["ope"] is None for c in record["checkpoints"])


def test_the_command_that_is_given_repeats_the_best_figures(trained) -> None:
    record = found(trained, "run", *ACTING, "--explore", "--no-log")
    command = shlex.split(record["use"]["shell"])
    words = command[command.index("evaluate") :]
    again = json.loads(trained(*words, "--no-log", "--json").stdout)
    assert again["returns"] == record["checkpoints"][0]["simulated"]["returns"]
    names: dict[str, object] = {}
    exec(record["use"]["python"], names)
    best = load_policy(record["best"]).get_weights().module
    for name, array in names["policy"].get_weights().module.items():
        np.testing.assert_array_equal(array, best[name])


def test_evaluations_and_estimates_are_logged_as_the_other_commands_do(trained) -> None:
    words = ("run", *ACTING, "--explore", "--estimators", "wis,cwpdis")
    record = found(trained, *words)
    lake = Lake(trained.storage / "lake")
    rows = lake.evaluations().to_arrow().to_pylist()
    by_id = {row["evaluation_id"]: row for row in rows}
    for each in record["checkpoints"]:
        row = by_id[each["simulated"]["logged"]]
        assert row["checkpoint"] == each["checkpoint"]
        assert row["return_mean"] == each["simulated"]["episode_return_mean"]
    assert len(rows) == ITERATIONS
    estimates = lake.ope_results().to_arrow().to_pylist()
    assert len(estimates) == 2 * ITERATIONS
    assert all(c["ope"]["logged"] for c in record["checkpoints"])
    # The same question, by the other command.
    asked = trained(
        "ope", "run", "--seed", 3, "--estimators", "wis,cwpdis", "--storage", trained.storage
    )
    assert "in ope_results already" in asked.output
    again = found(trained, *words)
    assert not any(c["ope"]["logged"] for c in again["checkpoints"])
    assert len(Lake(trained.storage / "lake").ope_results().to_arrow()) == 2 * ITERATIONS
    assert [c["ope"]["estimates"] for c in again["checkpoints"]] == [
        c["ope"]["estimates"] for c in record["checkpoints"]
    ]


def test_no_log_leaves_the_lake_alone(trained) -> None:
    before = Lake(trained.storage / "lake").versions()
    record = found(trained, "run", *ACTING, "--estimators", "wis", "--no-log")
    assert Lake(trained.storage / "lake").versions() == before
    assert {c["simulated"]["logged"] for c in record["checkpoints"]} == {None}


def test_the_table_says_what_was_found_and_how_far_the_two_ways_agree(trained) -> None:
    words = ("run", *ACTING, "--explore", "--estimators", "wis,pdis", "--table", "steps")
    record = found(trained, *words, "--no-log")
    result = select(trained, *words)
    assert result.exit_code == 0, result.output
    for text in ("simulated return", "wis", "behaviour", "ESS", "5 episodes each, explore"):
        assert text in result.output
    x = [c["simulated"]["episode_return_mean"] for c in record["checkpoints"]]
    for number, name in enumerate(("wis", "pdis")):
        y = [c["ope"]["estimates"][number]["value"] for c in record["checkpoints"]]
        expected = spearman(x, y)
        assert record["rank_correlation"][name] == {
            "spearman": pytest.approx(expected),
            "checkpoints": ITERATIONS,
        }
        assert f"{name} with simulation: Spearman {expected:+.2f} (4 checkpoints)" in result.output
    lines = [line for line in result.output.splitlines() if " run/" in line and "±" in line]
    assert [line.split("run/")[1].split()[0] for line in lines] == [
        c["checkpoint"].rsplit("/", 1)[1] for c in record["checkpoints"]
    ]
    assert [line.lstrip().startswith("*") for line in lines] == [True, False, False, False]
    assert "warning    " in result.output  # a few episodes are never 50
    assert "logged     4 evaluations; estimates of 4 checkpoints" in result.output
    assert record["use"]["shell"] in result.output


def test_an_estimator_decides_by_the_lower_end_of_its_interval(trained) -> None:
    words = ("--explore", "--by", "cwpdis", "--estimators", "wis,cwpdis", "--no-log")
    record = found(trained, "run", *words, "--no-simulation")
    lows = [c["ope"]["estimates"][1]["low"] for c in record["checkpoints"]]
    assert lows == [c["score"] for c in record["checkpoints"]] == sorted(lows, reverse=True)
    assert (record["by"], record["rank_correlation"]) == ("cwpdis", {})
    assert all(c["simulated"] is None for c in record["checkpoints"])


def test_named_checkpoints_are_taken_once_and_two_are_too_few_to_correlate(trained) -> None:
    two = checkpoints(trained)[:2]
    record = found(trained, *two, two[0], *ACTING, "--estimators", "wis", "--no-log")
    assert sorted(c["checkpoint"] for c in record["checkpoints"]) == [str(path) for path in two]
    assert record["rank_correlation"] == {}


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(trained) -> None:
    (checkpoints(trained)[1] / "modules.safetensors").write_bytes(b"no")
    result = select(trained, "run", *ACTING, "--json")
    assert result.exit_code == 0, result.output
    assert [c["iteration"] for c in json.loads(result.stdout)["checkpoints"]].count(2) == 0
    assert len(json.loads(result.stdout)["checkpoints"]) == ITERATIONS - 1
    assert "modules.safetensors is not what was written" in result.stderr


def test_without_an_environment_estimates_decide(iql) -> None:
    words = ("iql", "--explore", "--estimators", "wis,cwpdis", "--by", "cwpdis")
    record = found(iql, *words)
    assert sorted(c["iteration"] for c in record["checkpoints"]) == [1, 2]
    assert all(c["simulated"] is None for c in record["checkpoints"])
    lows = [c["ope"]["estimates"][1]["low"] for c in record["checkpoints"]]
    assert lows == sorted(lows, reverse=True)
    assert list(record["use"]) == ["python"]  # there is nothing that `evaluate` could run
    shown = select(iql, *words)
    assert "lower end of cwpdis's 95 % interval" in shown.output
    assert "estimates of 0 checkpoints, 2 were there already" in shown.output
    assert "millrace evaluate" not in shown.output


def test_doubly_robust_decides_where_nothing_is_simulated(iql) -> None:
    record = found(iql, checkpoints(iql, "iql")[0], *QUICK, "--explore", "--no-log")
    assert record["by"] == "dr"
    (only,) = record["checkpoints"]
    assert [e["estimator"] for e in only["ope"]["estimates"]] == ["dr", "fqe"]
    assert only["score"] == only["ope"]["estimates"][0]["low"]


def test_one_without_an_environment_has_all_compared_by_estimates(trained, logged_only) -> None:
    shutil.copytree(logged_only / "iql", trained.run_folder("iql"))
    record = found(trained, "run", "iql", *ACTING, "--explore", "--estimators", "wis", "--no-log")
    assert record["by"] == "wis"
    simulated = {c["run_id"]: c["simulated"] is not None for c in record["checkpoints"]}
    assert simulated == {"run": True, "iql": False}
    assert record["rank_correlation"]["wis"]["checkpoints"] == ITERATIONS


def row_of(checkpoint: Checkpoint, *, mean: float | None = None, **lows: float) -> Row:
    """A row of a simulated return and of estimates whose intervals begin at `lows`."""
    estimates = tuple(Estimate(n, low + 1.0, low, low + 2.0, "t") for n, low in lows.items())
    behavior = Estimate("behavior", 1.0, 0.0, 2.0, "t")
    subject = Subject("run", 0, str(checkpoint.path), "", 1, "greedy", 1, (), "lake")
    answer = Answer(subject, Evaluation(estimates, behavior, 9, 90, (), {}, {}))
    simulated = None if mean is None else Simulated((mean,), (1,))
    return Row(checkpoint, simulated, answer if lows else None)


@pytest.mark.parametrize(
    ("rows", "by", "order"),
    [
        ([{"mean": 1, "dr": 9}, {"mean": 2, "dr": 3}], "return", [1, 0]),
        ([{"mean": 1, "dr": 3}, {"dr": 9}], "dr", [1, 0]),
        ([{"dr": math.nan, "fqe": 3}, {"dr": 9, "fqe": 4}], "fqe", [1, 0]),
        ([{"fqe": 4, "wis": 2}, {"fqe": 4, "wis": 1}], "fqe", [0, 1]),
        ([{"fqe": math.nan}, {"fqe": 4}], "fqe", [1, 0]),
        ([{"dr": math.nan}], None, []),
    ],
)
def test_a_criterion_that_is_known_of_all_goes_before_one_that_is_not(
    trained, rows, by, order
) -> None:
    checkpoint = Checkpoint(checkpoints(trained)[0])
    made = [row_of(checkpoint, **row) for row in rows]
    names = [name for name in ("dr", "fqe", "wis") if any(name in row for row in rows)]
    assert criterion(made, AUTO, names) == by
    if by is not None:
        assert [made.index(row) for row in ranked(made, by)] == order


def test_rank_correlation_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=9), rng.normal(size=9)
    d = x.argsort().argsort() - y.argsort().argsort()
    assert spearman(x, y) == pytest.approx(1 - 6 * (d**2).sum() / (9 * 80))
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9**0.5)
    assert spearman([1, 2, 3], [5, 5, 5]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--estimators", "dr,ips"), "'ips' is none of is, wis"),
        (("run", "--by", "luck"), "'luck' is none of auto, return"),
        (("run", "--by", "wis"), "give --estimators dr,fqe,wis"),
        (("run", "--by", "return", "--no-simulation"), "nothing is simulated"),
        (("run", "--table", "episodes"), "--table"),
        (("run", "--version", "99"), "version 99 of steps does not exist"),
        (("run", "--estimators", "wis", "--gamma", "2"), "gamma is 2"),
        (("run", "--estimators", "wis", "--where", "colour == red"), "no column 'colour'"),
        (("run", "--episodes", "0"), "--episodes"),
        (("other",), 'no run "other"'),
        ((), "CKPT_OR_RUN"),
    ],
)
def test_bad_input_leaves_with_2_and_logs_nothing(trained, words, message: str) -> None:
    result = select(trained, *words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert Lake(trained.storage / "lake").evaluations().count() == 0


def test_a_run_without_checkpoints_leaves_with_2(trained) -> None:
    shutil.rmtree(trained.run_folder() / "checkpoints")
    result = select(trained, "run")
    assert result.exit_code == 2
    assert "has no checkpoint" in result.output


def test_nothing_to_simulate_or_to_estimate_from_leaves_with_2(iql) -> None:
    simulated = select(iql, "iql", "--by", "return")
    assert simulated.exit_code == 2
    assert "there is no environment" in simulated.output
    nobody = select(iql, "iql", "--where", "run_id == nobody")
    assert nobody.exit_code == 2
    assert "has no rows" in " ".join(nobody.output.split())

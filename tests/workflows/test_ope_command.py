"""`millrace ope` on a tiny real lake with a real checkpoint."""

import json
import math
import shutil

import pytest

from offline.lake import Lake
from pipelines.checkpoint import Checkpoint
from tests.workflows.conftest import Cli
from tests.workflows.report_kit import data_of

QUICK = ("--estimators", "is,wis,pdis,cwpdis")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A short PPO run whose own rows are the data."""
    cli = Cli(tmp_path_factory.mktemp("ope") / "storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.train.prestart", lambda **_: None)
        result = cli.train("--set", "checkpoint.period_iterations=1", iterations=4)
    assert result.exit_code == 0, result.output
    return cli.storage


@pytest.fixture
def trained(millrace, template):
    shutil.copytree(template, millrace.storage)
    return millrace


def ope(cli, *words):
    return cli("ope", *words, "--storage", cli.storage)


def test_estimates_are_printed_and_logged_once(trained) -> None:
    result = ope(trained, "run", *QUICK)
    assert result.exit_code == 0, result.output
    for text in ("behavior", "cwpdis", "ESS", "gamma 0.99", "added to ope_results"):
        assert text in result.output
    again = ope(trained, "run", *QUICK)
    assert "in ope_results already" in again.output
    rows = Lake(trained.storage / "lake").ope_results().to_arrow().to_pylist()
    assert [row["estimator"] for row in rows] == ["is", "wis", "pdis", "cwpdis"]
    assert {row["run_id"] for row in rows} == {"run"}
    assert rows[0]["gamma"] == 0.99
    assert rows[0]["low"] <= rows[0]["estimate"] <= rows[0]["high"]


def test_json_has_the_same_figures(trained) -> None:
    checkpoints = sorted((trained.run_folder() / "checkpoints").iterdir())
    words = ("--json", "--gamma", "0.9", "--level", "0.8", "--interval", "t", "--seed", "4")
    result = ope(trained, *checkpoints[-2:], *QUICK, *words)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["checkpoint"] for record in records] == [str(p) for p in checkpoints[-2:]]
    rows = Lake(trained.storage / "lake").ope_results().to_arrow().to_pylist()
    told = [each for record in records for each in record["estimates"]]
    assert [each["value"] for each in told] == [row["estimate"] for row in rows]
    assert all(record["logged"] for record in records)
    settings = records[0]["settings"]
    assert (settings["gamma"], settings["level"], settings["method"]) == (0.9, 0.8, "t")
    assert records[0]["sha256"] != records[1]["sha256"]


def test_a_version_and_conditions_choose_the_rows(trained) -> None:
    words = ("--json", "--no-log", "--estimators", "wis")
    everything = json.loads(ope(trained, "run", *words).stdout)
    some = ("--where", "policy_version == 0", "--where", '[["t", "<", 5]]')
    fewer = json.loads(ope(trained, "run", *words, *some).stdout)
    assert fewer["rows"] < everything["rows"]
    assert fewer["conditions"] == [["policy_version", "==", 0], ["t", "<", 5]]
    assert not everything["logged"]
    lake = Lake(trained.storage / "lake")
    assert lake.ope_results().count() == 0
    version = lake.versions()["steps"]
    same = json.loads(ope(trained, "run", *words, "--version", version).stdout)
    assert same["estimates"] == everything["estimates"]
    assert same["table_version"] == version


def test_a_page_has_the_intervals_that_are_told_and_needs_nothing_else(trained, tmp_path) -> None:
    path = tmp_path / "plots" / "ope.html"
    result = ope(trained, "run", *QUICK, "--plot", path, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    page = path.read_text()
    assert 'src="http' not in page
    (section,) = data_of(page)["sections"]
    assert section["title"].startswith("run/")
    (drawn,) = [block for block in section["blocks"] if block["kind"] == "intervals"]
    told = [
        [each["estimator"], *(each[key] for key in ("value", "low", "high"))]
        for each in record["estimates"]
    ]
    assert [row[0] for row in drawn["rows"]] == [row[0] for row in told]
    for row, expected in zip(drawn["rows"], told, strict=True):
        assert row[1:4] == pytest.approx(expected[1:], rel=1e-5)
    assert drawn["reference"] == ["logged episodes", record["behavior"]["value"]]
    notes = [block["text"] for block in section["blocks"] if block["kind"] == "note"]
    assert notes == [" ".join(text.split()) for text in record["warnings"]]


def test_fitted_q_evaluation_and_doubly_robust_by_the_command(trained) -> None:
    # A tiny discount converges in a few renewals.
    words = ("--estimators", "dr,fqe", "--gamma", "0.2", "--folds", "2", "--json")
    result = ope(trained, "run", *words)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    for each in record["estimates"]:
        # All rewards are 1, and hardly an episode ends in its first steps.
        assert each["value"] == pytest.approx(1 / 0.8, abs=0.03), each
        assert each["low"] <= each["value"] <= each["high"]
    assert record["details"]["fqe"]["members"] == 1 + 2 + 10


def test_the_greedy_policy_is_another(trained) -> None:
    words = ("--json", "--no-log", "--estimators", "wis")
    explore, greedy = (
        json.loads(ope(trained, "run", *words, way).stdout) for way in ("--explore", "--greedy")
    )
    assert (explore["target"], greedy["target"]) == ("explore", "greedy")
    assert explore["ope_id"] != greedy["ope_id"]
    assert greedy["estimates"][0]["ess"] < explore["estimates"][0]["ess"]


def test_the_manifests_sum_is_what_names_the_checkpoint(trained) -> None:
    import hashlib

    record = json.loads(ope(trained, "run", "--json", "--estimators", "wis").stdout)
    path = Checkpoint(record["checkpoint"]).path / "manifest.json"
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--estimators", "is,ips"), "'ips' is none of is, wis"),
        (("run", "--gamma", "1.5"), "gamma is 1.5"),
        (("run", "--level", "95"), "level is 95.0"),
        (("run", "--table", "episodes"), "--table"),
        (("run", "--version", "99"), "version 99 of steps does not exist"),
        (("run", "--where", "run_id"), "expected COLUMN OPERATOR VALUE"),
        (("run", "--where", "[1]"), "expected [[COLUMN"),
        (("run", "--where", "[oops"), "is not JSON"),
        (("run", "--where", "colour == red"), "no column 'colour'"),
        (("run", "--where", "run_id == other"), "has no rows"),
        (("run", "--plot", "picture.png"), ".html"),
        (("other",), 'no run "other"'),
        ((), "CKPT"),
    ],
)
def test_bad_input_leaves_with_2(trained, words, message: str) -> None:
    result = ope(trained, *words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_data_without_probabilities_leaves_with_2_and_the_fix(millrace) -> None:
    columns = '["obs","final_obs","value"]'
    result = millrace.train("--set", f"trace.columns={columns}")
    assert result.exit_code == 0, result.output
    refused = ope(millrace, "run", "--estimators", "wis")
    assert refused.exit_code == 2
    assert "--behavior estimate" in refused.output
    estimated = ope(millrace, "run", "--estimators", "wis", "--behavior", "estimate", "--json")
    assert estimated.exit_code == 0, estimated.output
    record = json.loads(estimated.stdout)
    assert math.isfinite(record["estimates"][0]["value"])
    assert record["details"]["behavior"]["epochs"] >= 1

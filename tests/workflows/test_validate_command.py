"""`millrace validate`: what it prints, as text and as JSON, and its exit codes."""

import json

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from offline.lake import Lake
from rl_ops import columns as c
from tests.offline.validation_kit import episode, lake_at, put_behind, row


@pytest.fixture
def lake(millrace) -> Lake:
    return lake_at(millrace.storage / "lake")


def validated(millrace, *words):
    return millrace("validate", "--storage", millrace.storage, *words)


def test_good_data_leaves_with_0(millrace, lake) -> None:
    put_behind(lake, [*episode("a"), *episode("b", end=c.TRUNCATED)])
    result = validated(millrace)
    assert result.exit_code == 0
    head, rows, problems = result.stdout.splitlines()
    assert head.endswith(f"of steps at {lake.storage.uri}")
    assert rows.split(maxsplit=1) == ["rows", "8 of 2 episodes"]
    assert problems.split() == ["problems", "none"]


def test_a_repeated_id_t_out_of_order_and_a_missing_last_step(millrace, lake) -> None:
    rows = [
        *episode("good"),
        *episode("twice"),
        *episode("twice", 3),
        *[one for one in episode("gap", 6) if one[c.T] != 3],
        *episode("last step missing", 5)[:-1],
    ]
    put_behind(lake, rows[::-1])
    result = validated(millrace)
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "problems 4" in text
    assert "doubled_rows: 3 rows of 1 episode" in text
    assert "twice of run, t=0: there is another row of this step" in text
    # The shorter of the two ended at t=2, and the other went on.
    assert "end_inside: 1 row of 1 episode" in text
    assert "gap of run, t=2: t=4 comes next" in text
    assert "last step missing of run, t=3: the log ends" in text
    assert "usable 9 of 3 episodes, the rest left out" in text
    skipped = validated(millrace, "--on-invalid", "skip")
    assert skipped.exit_code == 0
    assert skipped.stdout == result.stdout


def test_figures_as_json(millrace, lake) -> None:
    put_behind(lake, [*episode("a"), row("b", 0, reward=np.inf, truncated=True)])
    result = validated(millrace, "--json", "--needs", "logp")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["needs"] == {"logp": True, "contiguous": True}
    assert (record["rows"], record["episodes"], record["usable_rows"]) == (5, 2, 4)
    named = {problem["kind"]: problem for problem in record["problems"]}
    assert set(named) == {"not_finite", "no_final_obs"}
    assert named["not_finite"]["column"] == c.REWARD
    assert named["not_finite"]["places"][0]["episode_id"] == "b"


def test_what_is_needed_decides(millrace, lake) -> None:
    put_behind(lake, [*episode("a", logp=None), *episode("late", logp=None)[1:]])
    assert validated(millrace).exit_code == 1
    assert validated(millrace, "--needs", "transitions").exit_code == 0
    both = validated(millrace, "--needs", "transitions", "--needs", "logp", "--json")
    assert both.exit_code == 1
    assert [p["kind"] for p in json.loads(both.stdout)["problems"]] == ["no_logp"]
    # Under skip as well, where nothing is left.
    assert validated(millrace, "--needs", "logp", "--on-invalid", "skip").exit_code == 1


def test_a_version_a_time_and_conditions_choose_the_rows(millrace, lake) -> None:
    put_behind(lake, episode("a"))
    good = lake.steps().version
    put_behind(lake, episode("b", reward=np.nan, run_id="bad"))
    put_behind(lake, episode("a", run_id="other"), action=Discrete(2))
    assert "several_spaces: 12 rows of 3 episodes" in validated(millrace).stdout
    assert validated(millrace, "--version", good).exit_code == 0
    assert validated(millrace, "--timestamp", "2100-01-01").exit_code in (1, 2)
    for words in (["run_id == run"], ["run_id='run'", "t >= 0", "terminated != x"][:2]):
        where = [word for text in words for word in ("--where", text)]
        result = validated(millrace, *where)
        assert result.exit_code == 0, result.output
        assert "4 of 1 episode" in result.stdout
    nothing = validated(millrace, "--where", "t > 99", "--on-invalid", "skip")
    assert nothing.exit_code == 1
    assert "no_rows" in nothing.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "run_id"], "expected COLUMN OPERATOR VALUE"),
        (["--where", "t > many"], "t is int32, not 'many'"),
        (["--where", "terminated == perhaps"], "terminated is bool"),
        (["--where", "stepp > 1"], "has no column 'stepp'"),
        (["--version", "99"], "99"),
        (["--version", "-1"], "--version"),
        (["--version", "1", "--timestamp", "2030-01-01"], "not both"),
        (["--timestamp", "yesterday"], "yesterday"),
        (["--needs", "sleep"], "--needs"),
        (["--on-invalid", "ignore"], "--on-invalid"),
    ],
)
def test_bad_input_leaves_with_2(millrace, lake, words, said) -> None:
    put_behind(lake, episode("a"))
    result = validated(millrace, *words)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_no_lake_is_bad_input(millrace) -> None:
    result = validated(millrace)
    assert result.exit_code == 2
    assert "no table 'steps'" in " ".join(result.output.split())


def test_names_from_the_data_cannot_steer_the_terminal(millrace, lake) -> None:
    put_behind(lake, episode("\x1b[2Jx\ny", reward=np.nan))
    result = validated(millrace)
    assert "\x1b" not in result.output
    assert "\\x1b[2Jx" in result.output

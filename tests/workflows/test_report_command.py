"""`millrace report`: the figures of its page are the lake's, and what it cannot do it says."""

import json
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pytest

from offline.lake import Lake
from offline.tables import create_tables
from tests.offline.traces_kit import put
from tests.workflows.report_kit import HOSTILE, SEEDS, data_of, frames_of, storage_of, sweep_of
from workflows.reports.episodes import choose
from workflows.reports.page import embedded


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storage_of(tmp_path_factory.mktemp("reports"))


@pytest.fixture
def page(millrace, storage, tmp_path):
    """Names → the data of their report."""

    def make(*names: str) -> dict[str, Any]:
        out = tmp_path / "page.html"
        done = millrace("report", *names, "--storage", storage, "--out", out, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["bytes"] == out.stat().st_size
        found: dict[str, Any] = data_of(out.read_text())
        return found

    return make


def blocks(report, section, kind):
    (found,) = [part for part in report["sections"] if part["id"] == section]
    return [block for block in found["blocks"] if block["kind"] == kind]


def titled(found, title):
    (block,) = [block for block in found if block["title"] == title]
    return block


def test_a_runs_page_has_what_the_lake_knows(page):
    report = page("fast")
    facts = dict(row[:2] for row in blocks(report, "overview", "facts")[0]["rows"])
    assert facts["status"] == "finished"
    assert (facts["algorithm"], facts["environment"], facts["seed"]) == ("ppo", "CartPole-v1", "1")
    (line,) = titled(blocks(report, "learning", "chart"), "Return of training episodes")["series"]
    assert (line["x"], line["y"]) == ([100.0, 200.0], [2.0, 2.5])
    (entropy,) = titled(blocks(report, "losses", "chart"), "entropy")["series"]
    assert entropy["y"] == [0.7, 0.6]


def test_the_lag_is_audited_against_the_bound(page):
    (row,) = blocks(page("slow"), "lag", "table")[0]["rows"]
    assert row[:6] == ["slow", 2, 3, 0.0, 0, 0]
    assert row[6] == {"text": "holds", "tone": "good"}
    (row,) = blocks(page("fast"), "lag", "table")[0]["rows"]
    # Fragment 1 was used a version later, which its bound of 1 allows.
    assert (row[4], row[5], row[6]["text"]) == (1, 1, "holds")


def test_faults_and_rows_are_counted(page):
    report = page("fast")
    facts = dict(row[:2] for row in blocks(report, "faults", "facts")[0]["rows"])
    assert facts["failures"] == "3"
    kinds = {row[3]: row[5] for row in blocks(report, "faults", "table")[0]["rows"]}
    assert kinds == {"env": 1, "worker": 2}
    rows = titled(blocks(report, "lineage", "table"), "rows")["rows"]
    assert rows == [["fast", 8, 4, 2, 0]]  # as docs/sql.md reconciles them


def test_seeds_are_one_curve_with_an_interval(page):
    report = page(*SEEDS)
    series = titled(blocks(report, "learning", "chart"), "Return of training episodes")["series"]
    assert [line["faint"] for line in series] == [True, True, True, False]
    band = series[-1]
    assert band["name"].endswith("(3 seeds)")
    # At iteration k the seeds have k, 2 k and 3 k.
    assert band["y"][0] == pytest.approx(2.0)
    assert band["y"][-1] == pytest.approx(10.0)
    assert (band["low"][-1], band["high"][-1]) == (5.0, 15.0)


def test_a_sweep_has_its_trials_in_order_and_axes_for_its_settings(page):
    report = page("lr")
    table = titled(blocks(report, "overview", "table"), "trials")
    assert [row[0] for row in table["rows"]][:2] == ["lr-4", "lr-3"]
    assert table["rows"][0][2] == 0.01
    assert table["rows"][-1][1] == {"text": "error", "tone": "bad"}
    (parallel,) = blocks(report, "settings-and-results", "parallel")
    assert [name for name, _ in parallel["axes"]] == [
        *("optim.lr", "optim.name", "seed", "episode_return_mean")
    ]
    assert parallel["log"] == ["optim.lr"]
    assert parallel["axes"][-1][1] == [40.0, 30.0, 20.0, 10.0, 0.0]
    best = dict(
        row[:2] for row in titled(blocks(report, "overview", "facts"), "best trial")["rows"]
    )
    assert (best["best"], best["episode_return_mean"]) == ("lr-4", "40")


def test_a_workflow_has_its_runs_gates_and_promotions(page):
    report = page("nightly")
    (grid,) = blocks(report, "runs", "grid")
    assert grid["columns"] == ["run", "learn", "gate"]
    assert [name[:10] for name in grid["rows"]] == ["2026-05-03", "2026-05-02", "2026-05-01"]
    assert [None if cell is None else cell["status"] for cell in grid["cells"][0]] == [
        *("failed", "failed", None)
    ]
    (line,) = titled(blocks(report, "figures", "chart"), "Gates")["series"]
    assert (line["y"], line["low"], line["high"]) == ([2.0, -1.0], [1.0, -2.0], [3.0, 0.0])
    returns = titled(blocks(report, "figures", "chart"), "learn: episode_return_mean")
    assert returns["series"][0]["y"] == [10.0, 11.0]
    assert "learn: rows 7" in blocks(report, "figures", "note")[0]["text"]
    (row,) = blocks(report, "registry", "table")[0]["rows"]
    assert row[1:4] == ["cart", "champion", "set"]
    assert row[4].endswith("/promoted")
    assert row[5] == "seed-1"


def test_traces_have_every_step_as_it_was_logged(page, storage):
    from offline.lake import Lake

    data = blocks(page("run"), "traces", "traces")[0]["data"]
    rows = Lake(storage / "lake").steps(where=[("run_id", "=", "run")]).to_arrow().to_pylist()
    assert len(data["traces"]) > 3
    for name, trace in data["traces"].items():
        steps = sorted((r for r in rows if r["episode_id"] == name), key=lambda row: row["t"])
        assert trace["t"] == [row["t"] for row in steps]
        assert trace["reward"] == [row["reward"] for row in steps]
        obs = next(p for p in trace["panels"] if p["title"] == "observation")["series"]
        assert [s["name"] for s in obs] == ["obs[0]", "obs[1]", "obs[2]", "obs[3]"]
        assert obs[2]["y"] == pytest.approx([row["obs"][2] for row in steps], rel=1e-4)
        logp = next(c for c in trace["table"] if c["name"] == "logp")["values"]
        assert logp == pytest.approx([row["logp"] for row in steps], rel=1e-4)


def test_frames_are_those_of_the_lake(page):
    import base64
    import zlib

    frames = blocks(page("r"), "traces", "traces")[0]["data"]["traces"]["r/frames"]["frames"]
    raw = np.frombuffer(zlib.decompress(base64.b64decode(frames["data"])), np.uint8)
    assert frames["shape"] == [8, 6, 3]
    assert raw.reshape(6, -1)[:, 0].tolist() == [0, 40, 80, 120, 160, 200]


def test_the_most_telling_episodes_come_first():
    table = {
        "kind": ["train"] * 8 + ["evaluation"],
        "return": [5.0, 1.0, 9.0, 4.0, None, 6.0, 7.0, 3.0, 100.0],
        "length": [5, 1, 9, 4, 30, 6, 7, 3, 100],
        "aborted": [False, False, False, False, True, False, False, False, False],
    }
    # Best, worst, middle (also first), last, longest (also aborted), then evenly over time.
    assert choose(table, 6) == [2, 1, 0, 7, 4, 5]
    assert set(choose(table, 100)) == set(range(8))
    assert choose(table, 0) == []


def test_a_named_episode_is_there_and_opens_first(millrace, storage, tmp_path):
    wanted = "run/00002.0/0000000"
    out = tmp_path / "p.html"
    done = millrace(
        "report", "run", "--episodes", "1", "--episode", wanted, "--storage", storage, "--out", out
    )
    assert done.exit_code == 0, done.output
    data = blocks(data_of(out.read_text()), "traces", "traces")[0]["data"]
    assert next(iter(data["traces"])) == data["first"]
    assert data["first"].startswith("run/")
    assert len(data["traces"]) == 2


@pytest.mark.parametrize("listed", [True, False], ids=["among-others", "alone"])
def test_a_named_episode_of_which_there_are_steps_only_is_listed(millrace, tmp_path, listed):
    lake = Lake(tmp_path / "lake")
    create_tables(lake.storage)
    frames_of(lake, count=3)
    named = "r/frames"
    deltalake.DeltaTable(lake.storage.table_uri("episodes")).delete()
    if listed:
        other = {"run_id": "r", "episode_id": "r/other", "kind": "train", "length": 4}
        put(lake, "episodes", [other])
    out = tmp_path / "p.html"
    done = millrace("report", "r", "--episode", named, "--storage", tmp_path, "--out", out)
    assert done.exit_code == 0, done.output
    data = blocks(data_of(out.read_text()), "traces", "traces")[0]["data"]
    assert data["first"] == named, data["note"]
    assert len(data["traces"][named]["reward"]) == 3
    assert len(data["rows"]) == 1 + listed
    row = dict(zip([x for x in data["columns"] if x != "run"], data["rows"][-1], strict=True))
    assert (row["episode"], row["length"], row["ended"]) == (named, 3, "terminated")


def test_hostile_text_is_data_and_short(page):
    report = page("hostile")
    text = embedded(report)
    assert "<" not in text
    assert ">" not in text
    assert "\\u003c/script\\u003e" in text
    (row,) = blocks(report, "faults", "table")[0]["rows"]
    assert len(row[6]) < 600  # 400, some of which are written as escapes
    assert "\x1b" not in json.dumps(report, ensure_ascii=False)


def test_nothing_in_the_page_is_fetched_and_scripts_are_named_by_hash(millrace, storage, tmp_path):
    import base64
    import hashlib
    import re

    out = tmp_path / "p.html"
    assert millrace("report", "fast", "--storage", storage, "--out", out).exit_code == 0
    text = out.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.replace("&#39;", "'").replace("&#43;", "+")
    assert not re.search(r"""(src|href)=["']?https?:""", text)


def test_a_run_without_a_lake_is_reported_from_its_files(millrace, tmp_path):
    store = tmp_path / "s"
    words = ("--storage", store, "--debug", "--stop", '{"training_iteration": 2}')
    done = millrace(
        "train",
        "ppo",
        "--env",
        "CartPole-v1",
        "--name",
        "bare",
        *words,
        "--set",
        "trace.enabled=false",
    )
    assert done.exit_code == 0, done.output
    out = tmp_path / "p.html"
    done = millrace("report", "bare", "--storage", store, "--out", out)
    assert done.exit_code == 0, done.output
    report = data_of(out.read_text())
    (line,) = titled(blocks(report, "learning", "chart"), "Return of training episodes")["series"]
    results = [
        json.loads(text) for text in (store / "bare" / "result.json").read_text().splitlines()
    ]
    assert line["y"] == pytest.approx([row["episode_return_mean"] for row in results], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fats",), "no run, sweep or workflow 'fats' in"),
        (("fats",), "There are fast"),
        (("../lake",), "no run, sweep or workflow '../lake' in"),
        (("lr", "fast"), "a sweep is reported alone"),
        (("fast", "--kind", "workflow"), "no run, sweep or workflow 'fast'"),
        (("fast", "--out", "x.pdf"), "does not end in .html"),
        (("fast", "--episode", "nonesuch"), "nonesuch"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_is_refused(millrace, storage, words, said):
    done = millrace("report", *words, "--storage", storage)
    assert done.exit_code == 2, done.output
    assert said in done.output.replace("\n", " ")


def test_a_report_may_be_made_again_and_nothing_else_is_replaced(millrace, storage, tmp_path):
    out = tmp_path / "p.html"
    for _ in range(2):
        assert millrace("report", "slow", "--storage", storage, "--out", out).exit_code == 0
    out.write_text("<p>mine</p>")
    done = millrace("report", "slow", "--storage", storage, "--out", out)
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert out.read_text() == "<p>mine</p>"
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_a_name_of_two_things_has_to_be_said_which(millrace, storage, tmp_path):
    sweep_of(storage, "fast")
    try:
        done = millrace("report", "fast", "--storage", storage)
        assert done.exit_code == 2
        assert "--kind" in done.output
        out = tmp_path / "p.html"
        done = millrace("report", "fast", "--kind", "sweep", "--storage", storage, "--out", out)
        assert done.exit_code == 0, done.output
    finally:
        for path in (storage / "fast").iterdir():
            path.unlink()
        (storage / "fast").rmdir()


def test_texts_that_are_too_long_do_not_make_the_page_long(page):
    assert len(HOSTILE * 400) > 10_000
    assert len(json.dumps(page("hostile"))) < 60_000


def test_films_of_evaluations_are_in_the_page_as_far_as_there_is_room(millrace, tmp_path):
    import base64

    store = tmp_path / "s"
    words = ["train", "ppo", "--env", "CartPole-v1", "--name", "r", "--storage", store, "--debug"]
    words += ["--stop", '{"training_iteration": 2}', "--set", "evaluation.period_iterations=1"]
    words += ["--set", "evaluation.videos=1", "--set", "evaluation.episodes=1"]
    assert millrace(*words).exit_code == 0
    paths = sorted((store / "r" / "videos").rglob("*.mp4"))
    assert [path.parent.name for path in paths] == ["1", "2"]
    found = {}
    for room in ("3", "0"):
        out = tmp_path / f"{room}.html"
        done = millrace("report", "r", "--storage", store, "--out", out, "--video-mb", room)
        assert done.exit_code == 0, done.output
        (found[room],) = blocks(data_of(out.read_text()), "videos", "videos")
    names = [name for name, _ in found["3"]["films"]]
    assert names == ["r 2/rl-video-episode-0.mp4", "r 1/rl-video-episode-0.mp4"]
    start = "data:video/mp4;base64,"
    assert base64.b64decode(found["3"]["films"][0][1].removeprefix(start)) == paths[1].read_bytes()
    assert found["0"]["films"] == []
    assert "2 more do not fit" in found["0"]["note"]

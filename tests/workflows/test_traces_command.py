"""`millrace traces`: what is printed, what is refused, and that nothing printed is obeyed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import tests.render_envs  # noqa: F401 - registers environments
from offline.lake import Lake
from tests.offline.traces_kit import empty_lake, frame_rows, log_run, put, run_row
from tests.rollout_kit import env_spec
from tests.workflows.report_kit import data_of
from workflows.cli import LazyGroup
from workflows.plots import sparkline, terminal_plot
from workflows.trace_tables import aligned, short

HOSTILE = "<script>alert(1)</script>\x1b[31mred\x1b[0m"
CLI = LazyGroup("millrace", commands={"traces": "workflows.traces:traces"})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def lake(storage: Path) -> Lake:
    storage.mkdir()
    return empty_lake(storage / "lake")


@pytest.fixture
def logged(lake: Lake) -> Lake:
    log_run(lake, env_spec("count", lengths=(5, 30), tagged=True), count=3, num_envs=2, steps=20)
    return lake


def run(storage: Path, *words: object) -> Result:
    given = [*map(str, words), "--storage", str(storage)]
    return CliRunner().invoke(CLI, ["traces", *given], prog_name="millrace")


def traces_of(page: str) -> Any:
    """What a page's trace browser shows."""
    (section,) = data_of(page)["sections"]
    return section["blocks"][0]["data"]


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def episode(episode_id: str, **columns: Any) -> dict[str, Any]:
    row = {"run_id": "r", "session": 0, "kind": "import", "length": 4, "return": 6.0}
    flags = {"terminated": True, "truncated": False, "aborted": False}
    return {"episode_id": episode_id, **row, **flags, **columns}


@pytest.mark.usefixtures("logged")
def test_list_shows_the_figures_of_each_episode(storage: Path) -> None:
    head, *rows = lines(run(storage, "list", "--sort", "length"))
    names = ["episode", "run", "return", "length", "ended", "versions", "kind", "env"]
    assert head.split() == names
    first = (
        "run/00000.0/0000001  run     435      30  terminated  0         train  tests.envs:count"
    )
    assert rows[0] == first
    assert len(rows) == 8


@pytest.mark.usefixtures("logged")
def test_list_is_narrowed_by_options(storage: Path) -> None:
    assert len(lines(run(storage, "list", "--limit", 1))) == 2
    aborted = lines(run(storage, "list", "--aborted"))[1:]
    assert [line.split()[4] for line in aborted] == ["aborted", "aborted"]
    assert lines(run(storage, "list", "--kind", "evaluation")) == ["no such episodes"]
    assert len(lines(run(storage, "list", "--run", "run"))) == 9


@pytest.mark.usefixtures("logged")
def test_list_gives_programs_an_object_a_line(storage: Path) -> None:
    records = [json.loads(line) for line in lines(run(storage, "list", "--json", "--limit", 2))]
    assert len(records) == 2
    assert records[0].keys() >= {"episode_id", "run_id", "return", "length", "ending", "env"}
    assert records[0]["policy_version_first"] == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", records[0]["ended_at"])


@pytest.mark.usefixtures("logged")
def test_a_run_that_is_not_there_is_bad_input(storage: Path) -> None:
    result = run(storage, "list", "--run", "ruin")
    assert result.exit_code == 2
    assert "no run 'ruin' in the lake; did you mean 'run'?" in result.stderr


def test_a_storage_without_a_lake_is_bad_input(storage: Path) -> None:
    storage.mkdir()
    for words in (["list"], ["show", "x"], ["video", "x", "--output", storage / "x.mp4"]):
        result = run(storage, *words)
        assert result.exit_code == 2
        assert "lake" in result.stderr


@pytest.mark.usefixtures("logged")
def test_show_has_header_drawing_and_steps(storage: Path) -> None:
    shown = lines(run(storage, "show", "run/00001.0/0000001"))
    head = dict(line.split(maxsplit=1) for line in shown[:10] if line)
    assert head["env"] == "tests.envs:count, environment 1 of worker 0"
    assert head["policy"] == "version 0"
    assert head["seed"] == "11 of the run"
    assert head["return"] == "435"
    assert head["length"] == "30 steps, terminated"
    (reward,) = [line for line in shown if line.startswith("reward ")]
    assert "▁" in reward
    assert reward.endswith("0 to 29")
    assert [line.split()[0] for line in shown if line.startswith("obs[")] == [
        *("obs[0]", "obs[1]", "obs[2]")
    ]
    table = shown[shown.index(next(line for line in shown if line.lstrip().startswith("t "))) :]
    assert table[0].split() == ["t", "obs", "action", "reward", "value", "logp", "version", "flags"]
    assert re.match(r"0  \[1 0 \d+\]\s+[01]\s+0\s+", table[1].lstrip())
    assert table[15].endswith("fragment end")
    assert table[-1] == "... 10 of 30 steps more; --all shows them"
    assert len(table) == 22


@pytest.mark.usefixtures("logged")
def test_show_prints_as_many_rows_as_are_wanted(storage: Path) -> None:
    every = lines(run(storage, "show", "run/00001.0/0000001", "--all"))
    assert every[-1].split()[0] == "29"
    assert every[-1].endswith("terminated")
    none = lines(run(storage, "show", "run/00001.0/0000001", "--rows", 0))
    assert none[-1].startswith("... 30 of 30")


@pytest.mark.usefixtures("logged")
def test_show_gives_programs_numbers(storage: Path) -> None:
    (line,) = lines(run(storage, "show", "run/00001.0/0000001", "--json", "--rows", 2))
    record = json.loads(line)
    assert record["episode"]["return"] == 435
    assert [step["t"] for step in record["steps"]] == [0, 1]
    assert record["steps"][1]["obs"][:2] == [1.0, 1.0]
    assert record["steps"][1]["action"] in (0, 1)


@pytest.mark.usefixtures("logged")
def test_show_takes_the_beginning_of_an_id_and_names_the_nearest_to_a_wrong_one(
    storage: Path,
) -> None:
    assert lines(run(storage, "show", "run/00001.0/0000001"[:-1] + "1"))
    several = run(storage, "show", "run/00001")
    assert (several.exit_code, "several episodes" in several.stderr) == (2, True)
    wrong = run(storage, "show", "run/00001.0/0000017")
    assert wrong.exit_code == 2
    assert "no episode 'run/00001.0/0000017'; the nearest are 'run/0000" in wrong.stderr


def test_frames_and_dicts_are_shown_by_shape(lake: Lake, storage: Path) -> None:
    put(lake, "steps", frame_rows(lake, np.zeros((4, 84, 84, 3), np.uint8)))
    put(lake, "episodes", [episode("r/frames")])
    shown = lines(run(storage, "show", "r/frames"))
    assert any(re.match(r"\s*0  uint8\[84, 84, 3\]  ", line) for line in shown)
    (line,) = lines(run(storage, "show", "r/frames", "--json"))
    assert json.loads(line)["steps"][0]["obs"] == {"dtype": "uint8", "shape": [84, 84, 3]}
    tree = {"eye": np.zeros((2, 8, 8)), "arm": (np.array([[1.5], [2.5]]), np.array([3, 4]))}
    assert short(tree, 1) == "{eye: float64[8, 8], arm: ([2.5], 4)}"


def test_what_the_lake_says_is_not_obeyed_by_a_terminal(lake: Lake, storage: Path) -> None:
    put(lake, "runs", [run_row("r", env=HOSTILE)])
    put(lake, "steps", frame_rows(lake, np.zeros((4, 8, 8, 3), np.uint8), episode_id=HOSTILE))
    put(lake, "episodes", [episode(HOSTILE), episode("x" * 100_000)])
    for words in (["list"], ["show", HOSTILE], ["show", HOSTILE + "?"], ["show", "x"]):
        result = run(storage, *words)
        assert "\x1b" not in result.output
        assert max(map(len, result.output.splitlines())) < 2500


def test_what_the_lake_says_is_text_on_a_page(lake: Lake, storage: Path, tmp_path: Path) -> None:
    put(lake, "runs", [run_row("r", env=HOSTILE)])
    put(lake, "steps", frame_rows(lake, np.zeros((4, 8, 8, 3), np.uint8), episode_id=HOSTILE))
    put(lake, "episodes", [episode(HOSTILE)])
    path = tmp_path / "new" / "page.html"
    assert lines(run(storage, "show", HOSTILE, "--plot", path))[-1] == f"plot        {path}"
    page = path.read_text()
    assert "<script>alert" not in page
    (trace,) = traces_of(page)["traces"].values()
    assert ["env", HOSTILE.replace("\x1b", "\\x1b")] in trace["facts"]
    assert trace["frames"]["shape"] == [8, 8, 3]
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_names_in_observations_are_text_on_a_page(lake: Lake) -> None:
    from gymnasium import spaces

    from offline.traces import Trace, find_episode, read_trace
    from workflows.reports.page import html_page
    from workflows.reports.trace_page import trace_report

    log_run(lake, env_spec("count", lengths=(5,)), count=1, num_envs=1)
    trace = read_trace(lake, find_episode(lake, "run/00000.0/0000000"))
    name = "</script><img src=x onerror=alert(1)>"
    space = spaces.Dict({name: trace.obs_space})
    named = Trace(**{**vars(trace), "obs": {name: trace.obs}, "obs_space": space})
    page = html_page(trace_report(named, storage="D"))
    assert "<img src=x" not in page
    assert f"obs[{name!r}]" in str(traces_of(page)["traces"])


def test_a_page_needs_no_network_and_has_every_number(
    logged: Lake, storage: Path, tmp_path: Path
) -> None:
    path, name = tmp_path / "page.html", "run/00001.0/0000001"
    record = json.loads(lines(run(storage, "show", name, "--all", "--json", "--plot", path))[0])
    page = path.read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    data = traces_of(page)
    assert data["first"] == name
    assert len(data["rows"]) == 1
    trace = data["traces"][name]
    assert trace["length"] == len(record["steps"]) == record["episode"]["length"]
    assert trace["reward"] == [step["reward"] for step in record["steps"]]
    assert [panel["title"] for panel in trace["panels"]] == [
        "reward",
        "value and return to go",
        "action",
        "observation",
    ]
    lines_of = {line["name"]: line["y"] for panel in trace["panels"] for line in panel["series"]}
    obs = [step["obs"][2] for step in record["steps"]]
    assert lines_of["obs[2]"] == pytest.approx(obs, rel=1e-4)


def test_a_page_of_one_episode_has_all_of_its_steps(lake: Lake) -> None:
    from offline.traces import find_episode, read_trace
    from workflows.reports.trace_page import trace_report

    put(lake, "steps", frame_rows(lake, np.zeros((5_100, 2, 2, 3), np.uint8), episode_id="r/long"))
    trace = read_trace(lake, find_episode(lake, "r/long"))
    (section,) = trace_report(trace, storage="D").sections
    (block,) = section.blocks
    assert block.data["traces"]["r/long"]["length"] == 5_100
    assert block.data["rows"][0][:2] == ["r/long", "r"]


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--plot", "page.png", "does not end in .html"),
        ("--plot", "there.html", "exists already"),
        ("--plot", "link.html", "exists already"),
        ("--plot", "a\0b.html", "no NUL"),
        ("--plot", "there.html/page.html", "is not a folder"),
        ("--output", "video.avi", "does not end in .mp4"),
        ("--output", "link.mp4", "exists already"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_read(
    storage: Path, tmp_path: Path, option: str, name: str, message: str
) -> None:
    (tmp_path / "there.html").write_text("mine")
    for link in ("link.html", "link.mp4"):
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    command = "show" if option == "--plot" else "video"
    result = run(storage, command, "run/00001.0/0000001", option, tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (tmp_path / "there.html").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_video_says_where_it_is_and_how_long(lake: Lake, storage: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    log_run(lake, env_spec("tests/Drawn-v0"), count=2)
    path = tmp_path / "a.mp4"
    (line,) = lines(run(storage, "video", "run/00002.0/0000001", "--output", path))
    assert re.fullmatch(rf"{path}: \d+ frames, 10 a second", line)
    other = tmp_path / "b.mp4"
    (line,) = lines(run(storage, "video", "run/00002.0/0000001", "--output", other, "--json"))
    record = json.loads(line)
    assert record["path"] == str(other)
    assert record["frames"] >= 2
    assert path.stat().st_size > 500


@pytest.mark.usefixtures("logged")
def test_an_environment_that_cannot_be_filmed_is_bad_input(storage: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    result = run(storage, "video", "run/00001.0/0000001", "--output", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert "run/00001.0/0000001" not in result.stdout
    assert "tests.envs:count cannot be made with render_mode" in result.stderr


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize("format_", ["rllib", "parquet"])
def test_episodes_are_exported_by_id_or_by_run(storage: Path, tmp_path: Path, format_: str) -> None:
    options = ["--format", format_, "--json", "--output"]
    one = run(storage, "export", "run/00001.0/0000001", *options, tmp_path / "one")
    record = json.loads(lines(one)[-1])
    assert (record["episodes"], record["rows"], record["format"]) == (1, 30, format_)
    assert all((tmp_path / "one" / name).is_file() for name in record["files"])
    every = json.loads(
        lines(run(storage, "export", "--run", "run", *options, tmp_path / "all"))[-1]
    )
    assert every["episodes"] == 8
    text = lines(run(storage, "export", "--run", "run", *options[:2], "--output", tmp_path / "t"))
    assert "episodes   8" in text


@pytest.mark.usefixtures("logged")
def test_an_export_of_nothing_in_particular_is_bad_input(storage: Path, tmp_path: Path) -> None:
    result = run(storage, "export", "--format", "rllib", "--output", tmp_path / "a")
    assert (result.exit_code, "--run for all" in result.stderr) == (2, True)
    result = run(storage, "export", "run/9", "--format", "rllib", "--output", tmp_path / "a")
    assert (result.exit_code, "no episode 'run/9'" in result.stderr) == (2, True)
    assert not (tmp_path / "a").exists()


def test_sparklines_are_as_high_as_the_values() -> None:
    assert sparkline(np.arange(8.0)) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.arange(8.0), ascii_only=True) == "_.-=+*%#"
    assert sparkline(np.full(3, 7.0)) == "▅▅▅"
    assert sparkline(np.array([0.0, np.nan, 1.0, np.inf])) == "▁ █ "
    assert sparkline(np.full(2, np.nan)) == "  "
    assert sparkline(np.array([-1e308, 1e308, 0.0])) == "▁█▅"
    assert len(sparkline(np.arange(1000.0), width=50)) == 50


def test_drawings_are_below_each_other() -> None:
    first, second = terminal_plot({"a": np.array([1.0, 3.0]), "long": np.array([2.0, 2.0])})
    assert first == "a     ▁█  1 to 3"
    assert second == "long  ▅▅  2"
    assert terminal_plot({}) == []


def test_columns_are_below_each_other() -> None:
    assert aligned([("a", "b"), ("long", "1")], right={1}) == ["a     b", "long  1"]

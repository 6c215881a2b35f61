"""`millrace sql`: what is printed in each format, what is refused, and with which exit code."""

import base64
import csv
import datetime as dt
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.offline.sql_kit import append, episode, small_lake
from workflows.cli import LazyGroup
from workflows.sql_values import cell, plain, shown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    small_lake(storage / "lake")
    return storage


@pytest.fixture
def storage(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "storage")


def run(*args: str, storage: Path, given: str | None = None) -> Result:
    # Through a group of ours, which is what turns errors into exit codes.
    group = LazyGroup("millrace", commands={"sql": "workflows.sql:sql"})
    return CliRunner().invoke(group, ["sql", *args, "--storage", str(storage)], input=given)


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_answer_is_a_table(storage: Path) -> None:
    query = "SELECT run_id, count(*) AS steps FROM steps GROUP BY ALL ORDER BY ALL"
    result = run(query, storage=storage)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["run_id", "steps"]
    assert lines[2:] == [["fast", "8"], ["slow", "3"], ["2", "rows"]]


def test_a_long_table_is_cut_and_says_how_much_more_there_is(storage: Path) -> None:
    result = run("FROM range(1234)", "--limit-rows", "3", storage=storage)
    assert "1,234 rows; 1,231 more than shown: --limit-rows" in result.stdout
    assert len(result.stdout.splitlines()) < 10
    assert "more than shown" not in run("FROM range(100)", storage=storage).stdout
    assert "1 more than shown" in run("FROM range(101)", storage=storage).stdout


def test_json_has_a_valid_object_on_each_line(storage: Path) -> None:
    query = """SELECT 'nan'::DOUBLE AS nan, 'inf'::FLOAT AS inf, NULL AS nothing, true AS yes,
        TIMESTAMPTZ '2026-05-01 10:00:00.5+00' AS at, DATE '2026-05-01' AS day,
        '\\x00\\xFF'::BLOB AS raw, [1.5, NULL] AS list, {'a': [1, 2]} AS struct,
        MAP {'k': 1} AS map, 12345678901234567890::HUGEINT AS huge, 1.25::DECIMAL(5, 2) AS dec,
        INTERVAL 90 SECOND AS took, uuid '00000000-0000-0000-0000-000000000001' AS id,
        1 AS a, 2 AS a, e'\\x1b[31mred\\n' AS red"""
    (row,) = rows_of(run(query, "--format", "json", storage=storage))
    assert row["nan"] is None
    assert row["inf"] is None
    assert row["nothing"] is None
    assert row["yes"] is True
    assert row["at"] == "2026-05-01T10:00:00.500000+00:00"
    assert row["day"] == "2026-05-01"
    assert base64.b64decode(row["raw"]) == b"\x00\xff"
    assert row["list"] == [1.5, None]
    assert row["struct"] == {"a": [1, 2]}
    assert row["huge"] == 12345678901234567890
    assert row["dec"] == 1.25
    assert row["id"] == "00000000-0000-0000-0000-000000000001"
    assert (row["a"], row["a_1"]) == (1, 2)
    assert row["red"] == "\x1b[31mred\n"


@pytest.mark.parametrize("table", ["steps", "episodes", "run_events", "ledger"])
def test_every_row_of_a_table_is_json(storage: Path, table: str) -> None:
    found = rows_of(run(f"FROM {table}", "--format", "json", storage=storage))
    assert found
    assert "run_id" in found[0]


def test_csv_is_read_back_as_it_was(storage: Path) -> None:
    query = 'SELECT episode_id, obs, "return" FROM steps JOIN episodes USING (run_id, episode_id)'
    result = run(f"{query} ORDER BY ALL LIMIT 2", "--format", "csv", storage=storage)
    assert list(csv.reader(io.StringIO(result.stdout))) == [
        ["episode_id", "obs", "return"],
        ["a0", "[0.0, 0.0]", "3.0"],
        ["a0", "[1.0, 10.0]", "3.0"],
    ]
    tricky = run(
        "SELECT 'a\"b,c' AS x, NULL AS y, e'l1\\nl2' AS z", "--format", "csv", storage=storage
    )
    assert list(csv.reader(io.StringIO(tricky.stdout)))[1] == ['a"b,c', "", "l1\nl2"]


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.parquet"])
def test_output_is_written_in_the_format_of_its_suffix(
    storage: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    target.write_text("old")
    query = "SELECT run_id, sampled_at, obs FROM steps ORDER BY run_id, sampled_at LIMIT 4"
    result = run(query, "--output", str(target), storage=storage)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert f"4 rows in {target}" in result.stderr
    if name.endswith(".parquet"):
        assert pq.read_table(target).num_rows == 4
    else:
        assert len(target.read_text().splitlines()) == 4 + name.endswith(".csv")
    assert [path.name for path in tmp_path.glob("*x*")] == [name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["SELECT 1", "--format", "parquet"], "needs --output"),
        (["SELECT 1", "--output", "{tmp}/x"], "--format csv, json or parquet"),
        (["SELECT 1", "--output", "{tmp}/x.csv", "--format", "table"], "--format csv"),
        (["SELECT 1", "--output", "{tmp}/none/x.csv"], "there is no folder"),
        (["SELECT 1", "--output", "{tmp}", "--format", "csv"], "is a folder"),
        (["SELECT 1", "--version", "steps"], "is not TABLE=N, as steps=12"),
        (["SELECT 1", "--version", "steps=-1"], "is not TABLE=N"),
        (["SELECT 1", "--version", "steps=1", "--version", "steps=2"], "two versions"),
        (["SELECT 1", "--version", "stepz=1"], "did you mean steps"),
        (["SELECT 1 FROM steps", "--version", "steps=99"], "99"),
        (["SELECT 1", "--memory", "lots"], "512MiB"),
        (["SELECT 1", "--time-limit", "0"], "above 0"),
        (["SELECT 1", "--time-limit", "nan"], "above 0"),
        (["SELECT 1", "--limit-rows", "0"], "--limit-rows"),
        (["SELECT 1", "--format", "xml"], "'table', 'csv', 'json', 'parquet'"),
        ([""], "empty"),
        (["SELECT * FROM stepz"], "did you mean steps"),
        (["SELECT rewrd FROM steps"], "LINE 1: SELECT rewrd"),
        (["COPY steps TO '{tmp}/x.csv'"], "COPY is refused"),
        (["SELECT * FROM read_csv('/etc/passwd')"], "lake's tables only"),
        (["SELECT 1; SELECT 2"], "2 statements"),
        (["FROM range(1e15::BIGINT) WHERE range < 0", "--time-limit", "0.2"], "--time-limit"),
    ],
)
def test_bad_input_leaves_with_2_and_a_message(
    storage: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    result = run(*[arg.replace("{tmp}", str(tmp_path)) for arg in args], storage=storage)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["storage"]


def test_no_lake_is_bad_input(tmp_path: Path) -> None:
    result = run("SELECT 1 FROM runs", storage=tmp_path / "none")
    assert result.exit_code == 2
    assert "--storage" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_version_is_read_as_it_was(storage: Path) -> None:
    from offline.lake import Lake

    lake = Lake(storage / "lake")
    version = lake.versions()["episodes"]
    append(lake.storage, "episodes", [episode("slow", "b2", 4.0, 4, 2)])
    query = "SELECT count(*) AS n FROM episodes"
    assert rows_of(run(query, "--format", "json", storage=storage)) == [{"n": 7}]
    then = run(query, "--format", "json", "--version", f"episodes={version}", storage=storage)
    assert rows_of(then) == [{"n": 6}]


def test_a_dash_reads_the_query_from_stdin(storage: Path) -> None:
    query = "SELECT count(*) AS n\nFROM runs -- two of them\n;"
    assert rows_of(run("-", "--format", "json", storage=storage, given=query)) == [{"n": 2}]
    assert run("-", storage=storage, given="").exit_code == 2


def test_what_a_terminal_would_obey_is_shown_escaped(storage: Path) -> None:
    attack = "SELECT e'\\x1b]0;owned\\x07[bold red]x[/] \\x1b[2J' AS e, 1 AS \"\x1b[31mname\""
    result = run(attack, storage=storage)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold red]x[/]" in result.stdout
    assert "\\x1b[31mname" in result.stdout
    wrong = run('SELECT "\x1b[31mx" FROM steps', storage=storage)
    assert wrong.exit_code == 2
    assert "\x1b" not in wrong.output


@pytest.mark.parametrize(
    ("value", "as_json", "as_cell", "as_shown"),
    [
        (None, None, "", "-"),
        (1.5, 1.5, "1.5", "1.5"),
        (0.1 + 0.2, 0.1 + 0.2, "0.30000000000000004", "0.3"),
        (10**20, 10**20, str(10**20), str(10**20)),
        (True, True, "true", "true"),
        (b"\x01\x02", "AQI=", "AQI=", "2 bytes"),
        (Decimal("3"), 3, "3", "3"),
        (Decimal("3.5"), 3.5, "3.5", "3.5"),
        (dt.timedelta(minutes=1), 60.0, "60.0", "60.0"),
        (dt.date(2026, 5, 1), "2026-05-01", "2026-05-01", "2026-05-01"),
        ([1.0, None], [1.0, None], "[1.0, null]", "[1.0, null]"),
        ([0.1 + 0.2], [0.1 + 0.2], "[0.30000000000000004]", "[0.3]"),
        ({"a": b"\x00"}, {"a": "AA=="}, '{"a": "AA=="}', '{"a": "AA=="}'),
    ],
)
def test_values_in_each_format(value: Any, as_json: Any, as_cell: str, as_shown: str) -> None:
    assert (plain(value), cell(value), shown(value)) == (as_json, as_cell, as_shown)


def test_explain_shows_the_plan_on_its_lines(storage: Path) -> None:
    result = run("EXPLAIN SELECT count(*) FROM steps", storage=storage)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5


def test_wide_answers_keep_all_columns_in_a_pipe(storage: Path) -> None:
    result = run("FROM steps LIMIT 1", storage=storage)
    head = result.stdout.splitlines()[1].split()
    assert head[0] == "run_id"
    assert head[-1] == "noise_scale"


def process(*args: str, storage: Path) -> "subprocess.Popen[str]":
    code = (
        "from workflows.cli import LazyGroup\n"
        "LazyGroup('millrace', commands={'sql': 'workflows.sql:sql'})()"
    )
    command = [sys.executable, "-c", code, "sql", *args, "--storage", str(storage)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(storage)},
        # Who starts tests in the background of a shell has it ignored, and so would children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_process_prints_the_answer_and_nothing_else(storage: Path) -> None:
    done = process("SELECT count(*) AS n FROM runs", "--format", "csv", storage=storage)
    assert done.communicate(timeout=60) == ("n\n2\n", "")
    assert done.returncode == 0


def test_an_interrupted_query_ends_at_once_and_leaves_nothing(storage: Path) -> None:
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b"
    running = process(endless, storage=storage)
    deadline = time.monotonic() + 30
    while not list(storage.glob("millrace-sql-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    try:
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert out == ""
    assert not list(storage.glob("millrace-sql-*"))


def test_a_reader_that_closes_the_pipe_is_no_error(storage: Path) -> None:
    running = process("FROM range(1000000)", "--format", "csv", storage=storage)
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == "range\n"
    running.stdout.close()
    assert "Traceback" not in running.stderr.read()
    running.wait(timeout=30)


def test_the_answer_is_an_arrow_table_of_plain_types(storage: Path) -> None:
    from offline.lake import Lake

    found = Lake(storage / "lake").sql("SELECT sum(t) AS s, count(*) AS n FROM steps")
    assert found.schema.field("n").type == pa.int64()

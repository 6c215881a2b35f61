"""SQL over the lake: what it answers, what it refuses, what it costs, and what it says."""

import os
import re
import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from offline.errors import LakeError, QueryError
from offline.lake import Lake
from offline.schemas import TABLES
from offline.storage import Storage
from offline.views import SQL_NAMES
from tests.offline.sql_kit import append, episode, small_lake


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return small_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def lake(storage: Storage) -> Lake:
    return Lake(storage)


@pytest.fixture
def own(storage: Storage, tmp_path: Path) -> Lake:
    """A copy that a test may harm."""
    return Lake(shutil.copytree(storage.uri, tmp_path / "lake"))


def test_a_query_is_answered_with_an_arrow_table(lake: Lake) -> None:
    found = lake.sql("SELECT run_id, count(*) AS steps FROM steps GROUP BY run_id ORDER BY run_id")
    assert found.to_pylist() == [{"run_id": "fast", "steps": 8}, {"run_id": "slow", "steps": 3}]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS a",
        "WITH x AS (SELECT 1 AS a) SELECT * FROM x",
        "FROM runs SELECT run_id",
        "VALUES (1)",
        "TABLE runs",
        "DESCRIBE steps",
        "SHOW TABLES",
        "SUMMARIZE episodes",
        "EXPLAIN SELECT * FROM steps",
        "/* why */ EXPLAIN ANALYZE SELECT count(*) FROM steps",
        "EXPLAIN (FORMAT json) SELECT 1",
        "SELECT * FROM (SELECT run_id FROM steps) LIMIT 1;",
        "PIVOT metrics ON key USING max(value) GROUP BY iteration",
        "SELECT * FROM query_table('steps')",
        "SELECT count(*) FROM main.steps",
        'SELECT count(*) FROM "STEPS"',
    ],
)
def test_what_only_reads_is_answered(lake: Lake, query: str) -> None:
    assert lake.sql(query).num_rows >= 1


@pytest.mark.parametrize(
    "query",
    [
        "COPY steps TO '{folder}/x.csv'",
        "COPY (SELECT 1) TO '{folder}/x.parquet' (FORMAT parquet)",
        "ATTACH '{folder}/x.db' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '100GB'",
        "RESET memory_limit",
        "PRAGMA version",
        "CALL pragma_version()",
        "EXPORT DATABASE '{folder}/x'",
        "CREATE TABLE x AS SELECT 1",
        "CREATE MACRO f() AS 1",
        "INSERT INTO steps SELECT * FROM steps",
        "DELETE FROM steps",
        "UPDATE steps SET t = 0",
        "DROP VIEW runs",
        "PREPARE q AS SELECT 1",
        "BEGIN",
        "CHECKPOINT",
        "USE main",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY steps TO '{folder}/x.csv'",
        "EXPLAIN ANALYZE COPY steps TO '{folder}/x.csv'",
        "EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1",
        "EXPLAIN/**/ANALYZE COPY steps TO '{folder}/x.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_parquet('{folder}/*/*.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_json('https://example.com/x.json')",
        "SELECT getenv('HOME')",
        "WITH x AS (COPY steps TO '{folder}/x.csv') SELECT 1",
        "",
        "  ",
        "-- nothing",
        "SELECT",
        "SELEC 1",
    ],
)
def test_what_does_anything_else_is_refused(lake: Lake, tmp_path: Path, query: str) -> None:
    with pytest.raises(QueryError):
        lake.sql(query.replace("{folder}", str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_write_inside_a_select_is_refused(lake: Lake) -> None:
    with pytest.raises(QueryError):
        lake.sql("WITH x AS (INSERT INTO steps SELECT * FROM steps RETURNING 1) SELECT * FROM x")


def test_python_objects_are_out_of_reach(lake: Lake) -> None:
    secret = pa.table({"a": [1]})
    with pytest.raises(QueryError, match="there is no table 'secret'"):
        lake.sql("SELECT * FROM secret")
    assert secret.num_rows == 1


def test_a_refusal_says_what_is_possible(lake: Lake) -> None:
    with pytest.raises(QueryError, match="COPY is refused: a query can only read the lake"):
        lake.sql("COPY steps TO 'x.csv'")
    with pytest.raises(QueryError, match="2 statements; give one SELECT"):
        lake.sql("SELECT 1; SELECT 2")
    with pytest.raises(QueryError, match="lake's tables only"):
        lake.sql("SELECT * FROM read_csv('/etc/passwd')")


def test_parameters_are_bound_and_not_formatted_in(lake: Lake) -> None:
    attack = "'; DROP TABLE runs; --"
    assert lake.sql("SELECT ? AS a", [attack]).to_pylist() == [{"a": attack}]
    found = lake.sql("SELECT count(*) AS n FROM steps WHERE run_id = $run", {"run": "slow"})
    assert found.to_pylist() == [{"n": 3}]
    assert lake.sql("SELECT count(*) AS n FROM steps WHERE run_id = ?", [attack]).to_pylist() == [
        {"n": 0}
    ]


@pytest.mark.parametrize("parameters", [None, [1, 2], {"b": 1}, [object()], "x", 3])
def test_parameters_that_do_not_fit_are_an_error(lake: Lake, parameters: object) -> None:
    with pytest.raises(QueryError):
        lake.sql("SELECT $a", parameters)  # type: ignore[arg-type]


def test_an_unknown_table_is_answered_with_what_there_is(lake: Lake) -> None:
    with pytest.raises(QueryError, match=r"no table 'stepz'; did you mean steps\?") as caught:
        lake.sql("SELECT *\nFROM stepz")
    assert "LINE 2: FROM stepz" in str(caught.value)
    with pytest.raises(QueryError, match="there are episodes|there are steps") as caught:
        lake.sql("SELECT * FROM qqqqq")
    assert all(name in str(caught.value) for name in SQL_NAMES)


def test_an_unknown_column_is_answered_with_what_there_is(lake: Lake) -> None:
    with pytest.raises(QueryError) as caught:
        lake.sql("SELECT rewrd FROM steps")
    text = str(caught.value)
    assert 'Candidate bindings: "reward"' in text
    assert "LINE 1: SELECT rewrd" in text
    assert "steps has run_id, session" in text
    with pytest.raises(QueryError, match="transitions has .*next_obs"):
        lake.sql("SELECT transitions.nextobs FROM transitions")


def test_a_syntax_error_says_where(lake: Lake) -> None:
    with pytest.raises(QueryError, match=r"syntax error at or near(.|\n)*LINE 1: SELECT 1 FORM"):
        lake.sql("SELECT 1 FORM steps x")


def test_a_query_that_takes_too_long_is_interrupted(lake: Lake) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"longer than 0\.3 s.*time_limit_s=, --time-limit"):
        lake.sql(
            "SELECT count(*) FROM range(10000000) a, range(1000000) b WHERE a.range < b.range",
            time_limit_s=0.3,
        )
    assert time.monotonic() - started < 3
    with pytest.raises(QueryError, match=r"longer than 0\.3 s"):
        lake.sql("SELECT * FROM range(100000000000)", time_limit_s=0.3, memory="100GiB")
    assert not [t for t in threading.enumerate() if t.name.startswith("sql")]


def test_a_query_that_needs_more_memory_spills_and_the_folder_is_gone(
    lake: Lake, tmp_path: Path
) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.update(p.name for p in tmp_path.rglob("*"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    query = (
        "SELECT count(*) AS n FROM "
        "(SELECT range % 1500000 AS k, count(*) FROM range(3000000) GROUP BY k)"
    )
    try:
        found = lake.sql(query, memory="48MiB", temp_dir=tmp_path)
    finally:
        done.set()
        watcher.join()
    assert found.to_pylist() == [{"n": 1_500_000}]
    assert any(name.endswith(".tmp") or "duckdb_temp" in name for name in seen)
    assert not list(tmp_path.iterdir())


def test_a_query_that_cannot_spill_enough_says_so(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"more than 40MiB of memory.*--memory"):
        lake.sql("SELECT list(range) FROM range(20000000)", memory="40MiB", temp_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_answer_larger_than_the_limit_is_refused(lake: Lake) -> None:
    with pytest.raises(QueryError, match="answer takes more than 32MiB; aggregate"):
        lake.sql("SELECT range FROM range(100000000)", memory="32MiB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "much"}, "512MiB"),
        ({"memory": "1KB"}, "32MiB"),
        ({"memory": "1GiB'; SELECT 1"}, "512MiB"),
        ({"time_limit_s": 0}, "above 0"),
        ({"time_limit_s": float("nan")}, "above 0"),
        ({"temp_dir": "/does/not/exist"}, "no folder"),
        ({"versions": {"stepz": 1}}, "did you mean steps"),
        ({"versions": {"transitions": 1}}, "is a view .* give that of steps"),
    ],
)
def test_wrong_limits_and_versions_are_refused(
    lake: Lake, options: dict[str, object], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        lake.sql("SELECT 1", **options)  # type: ignore[arg-type]


def test_each_call_sees_the_newest_commits_and_a_version_stays_as_it_was(own: Lake) -> None:
    count = "SELECT count(*) AS n FROM episodes"
    before = own.versions()
    assert own.sql(count).to_pylist() == [{"n": 6}]
    append(own.storage, "episodes", [episode("slow", "b2", 4.0, 4, 2)])
    assert own.sql(count).to_pylist() == [{"n": 7}]
    assert own.sql(count, versions=before).to_pylist() == [{"n": 6}]
    with pytest.raises(LakeError, match="99"):
        own.sql(count, versions={"episodes": 99})


def test_a_lake_that_is_being_written_is_read_whole_batch_by_batch(own: Lake) -> None:
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(8):
                ten = [episode("live", f"{number}-{i}", 1.0, 1, number) for i in range(10)]
                append(own.storage, "episodes", ten)
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    query = "SELECT count(*) AS n FROM episodes WHERE run_id = 'live'"
    seen = []
    writer.start()
    while writer.is_alive():
        seen.append(own.sql(query).to_pylist()[0]["n"])
    writer.join()
    seen.append(own.sql(query).to_pylist()[0]["n"])
    assert not failed
    assert seen == sorted(seen)
    assert seen[-1] == 80
    assert not [number for number in seen if number % 10]


def test_only_tables_that_the_query_names_are_opened(own: Lake) -> None:
    for name in TABLES:
        if name != "runs":
            folder = Path(own.storage.table_uri(name))
            folder.rename(folder.with_name(f"gone-{name}"))
    assert own.sql("SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 2}]
    with pytest.raises(LakeError, match="steps"):
        own.sql("SELECT count(*) FROM transitions")


def delete_but(lake: Lake, table: str, part: str) -> None:
    """Remove the data files without `part` in their path."""
    root = Path(lake.storage.table_uri(table))
    others = [path for path in root.rglob("*.parquet") if part not in str(path)]
    assert others
    for path in others:
        if "_delta_log" not in str(path):
            path.unlink()


def files(lake: Lake, table: str) -> set[Path]:
    root = Path(lake.storage.table_uri(table))
    return {path for path in root.rglob("*.parquet") if "_delta_log" not in str(path)}


def test_a_query_for_one_run_touches_no_other_runs_files(own: Lake) -> None:
    delete_but(own, "steps", "run_id=slow")
    for text in (
        "SELECT count(reward) AS n FROM steps WHERE run_id = 'slow'",
        "SELECT count(next_obs) AS n FROM transitions WHERE run_id = 'slow'",
        "SELECT count(return_to_go) AS n FROM returns WHERE run_id = 'slow'",
    ):
        assert own.sql(text).to_pylist() == [{"n": 3}]
    found = own.sql("SELECT count(t) AS n FROM steps WHERE run_id = $run", {"run": "slow"})
    assert found.to_pylist() == [{"n": 3}]
    with pytest.raises(LakeError, match=r"data file steps/run_id=fast.* is missing"):
        own.sql("SELECT count(reward) FROM steps")


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        ("episodes", "episode_id = 'z9'"),
        ("episodes", '"return" = -77'),
        ("episodes", '"return" < -50'),
        ("episodes", "fragment_first >= 1000"),
        ("steps", "t >= 500"),
        ("steps", "fragment_id = 5000"),
        ("steps", "episode_id >= 'z'"),
        ("transitions", "episode_id = 'z9'"),
        ("returns", "run_id = 'fast' AND episode_id = 'z9'"),
    ],
)
def test_files_are_skipped_by_minimum_and_maximum(own: Lake, table: str, condition: str) -> None:
    before = files(own, "episodes" if table == "episodes" else "steps")
    if table == "episodes":
        added = episode("fast", "z9", -77.0, 9, 3, fragment_first=1000)
        append(own.storage, table, [added])
    else:
        from tests.offline.sql_kit import steps

        row = steps("fast", "z9", [1.0], fragments=[5000])[0]
        append(own.storage, "steps", [row | {"t": 500}])
    for path in before:
        path.unlink()
    found = own.sql(f"SELECT count(*) AS n, max(run_id) AS run FROM {table} WHERE {condition}")
    assert found.to_pylist() == [{"n": 1, "run": "fast"}]


@pytest.mark.parametrize("query", ["SELECT * FROM steps", "SELECT sum(reward) FROM steps"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_a_damaged_file_is_named(own: Lake, query: str, harm: str) -> None:
    victim = sorted(files(own, "steps"))[0]
    if harm == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: 0 if harm == "empty" else 200])
    with pytest.raises(LakeError, match="millrace lake doctor") as caught:
        own.sql(query)
    assert victim.name in str(caught.value)


def test_names_that_come_twice_are_told_apart(lake: Lake) -> None:
    assert lake.sql("SELECT 1 AS a, 2 AS a, 3 AS a_1").column_names == ["a", "a_2", "a_1"]


def test_times_are_utc_whatever_the_machine_says(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    found = lake.sql("SELECT date_trunc('day', min(sampled_at)) AS day FROM steps")
    assert found.schema.field("day").type == pa.timestamp("us", tz="UTC")
    assert found.to_pylist()[0]["day"].isoformat() == "2026-05-01T00:00:00+00:00"


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_can_be_read(lake: Lake, table: str) -> None:
    name = "run_events" if table == "runs" else table
    found = lake.sql(f"SELECT * FROM {name}")
    assert found.column_names == TABLES[table].schema.names
    assert found.num_rows == lake.table(table).count()


def test_importing_the_lake_loads_neither_duckdb_nor_ray_nor_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, offline.lake, offline.sql, offline.views, offline.ray_reading\n"
        "print([m for m in ('torch', 'ray', 'duckdb', 'pandas', 'deltalake') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert re.fullmatch(r"\[\]\n", done.stdout)

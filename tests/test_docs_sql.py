"""docs/sql.md: its ten queries give the known answers, and its columns are those of the lake."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from offline.lake import Lake
from offline.schemas import TABLES
from offline.views import SOURCES, VIEWS
from tests.offline.sql_kit import append, consumed, small_lake

DOCS = (Path(__file__).parents[1] / "docs" / "sql.md").read_text()
QUERIES = dict(re.findall(r"<!-- query: (.+?) -->\n```sql\n(.*?)```", DOCS, re.DOTALL))

TEN: Any = datetime(2026, 5, 1, 10, tzinfo=UTC)

ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "returns per version": [(1, 2, 2.5, 2.0, 3.0)],
    "worst episodes": [("a1", 2.0, 1, 1, 1), ("a0", 3.0, 3, 1, 1)],
    "actions": [
        ("fast", 0, 5, 0.625),
        ("fast", 1, 3, 0.375),
        ("slow", 0, 2, 0.6667),
        ("slow", 1, 1, 0.3333),
    ],
    "lag audit": [("fast", 1, 2, 1, 0, True), ("slow", 0, 2, 0, 0, True)],
    "steps per hour": [
        ("fast", TEN, 6),
        ("fast", TEN.replace(hour=11), 2),
        ("slow", TEN, 3),
    ],
    "success rate": [("CartPole-v1", 1, 2, 0.5), ("CartPole-v1", 2, 2, 0.5)],
    "failures": [
        ("fast", "episode aborted", 1, None),
        ("fast", "failure: env", 1, "boom"),
        ("fast", "failure: worker", 2, "killed"),
    ],
    "metrics": [(1, 2.0, 0.7), (2, 2.5, 0.6)],
    # Fragment 2 of session 0 and fragment 0 of session 1 were not used.
    "reconciliation": [("fast", 8, 4, 2, 0, 0), ("slow", 3, 3, 0, 0, 0)],
    "calibration": [(1.0, 1, 1.0, 0.0), (2.0, 1, 2.0, -0.25), (3.0, 1, 3.0, 0.0)],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(small_lake(tmp_path_factory.mktemp("lake")))


def test_there_are_ten_queries() -> None:
    assert list(QUERIES) == list(ANSWERS)
    assert len(QUERIES) == 10


@pytest.mark.parametrize("name", ANSWERS)
def test_a_query_of_the_docs_gives_the_known_answer(lake: Lake, name: str) -> None:
    found = lake.sql(QUERIES[name]).to_pylist()
    assert [tuple(row.values()) for row in found] == ANSWERS[name]


@pytest.mark.parametrize(
    "wrong",
    [
        consumed("slow", 7, rows=1, acted=0, learner=1),
        consumed("slow", 7, rows=1, acted=2, learner=1),
        consumed("slow", 7, rows=1, acted=1, learner=1) | {"lag": 3},
        # Its step says that version 1 acted.
        consumed("slow", 1, rows=1, acted=0, learner=0),
    ],
)
def test_the_lag_audit_fails_where_the_bound_was_broken(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    lake = Lake(small_lake(tmp_path / "lake"))
    append(lake.storage, "consumption", [wrong])
    found = {row["run_id"]: row["holds"] for row in lake.sql(QUERIES["lag audit"]).to_pylist()}
    assert found == {"fast": True, "slow": False}


def columns_in_docs() -> dict[str, list[tuple[str, str]]]:
    sections = re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", DOCS, re.DOTALL | re.MULTILINE)
    return {
        name: re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE)
        for name, text in sections
    }


def test_the_docs_have_the_columns_of_every_table_and_view(lake: Lake) -> None:
    found = columns_in_docs()
    assert list(found) == [
        *("run_events" if name == "runs" else name for name in TABLES),
        *VIEWS,
    ]
    assert set(found) == {*SOURCES, *VIEWS}
    for name, columns in found.items():
        described = lake.sql(f"DESCRIBE {name}").to_pylist()
        assert columns == [(row["column_name"], row["column_type"]) for row in described]


def test_only_the_names_that_the_docs_tell_need_quotes() -> None:
    names = {field.name for table in TABLES.values() for field in table.schema}
    need = set()
    with duckdb.connect(":memory:") as connection:
        for name in sorted(names):
            text = f'SELECT {name}, sum({name}) FROM (SELECT 1 AS "{name}") GROUP BY {name}'
            try:
                connection.execute(text).fetchall()
            except duckdb.ParserException:
                need.add(name)
    told = re.search(r"\*\*Names\.\*\* (.*?) are keywords", DOCS)
    assert told is not None
    assert need == set(re.findall(r"`(\w+)`", told.group(1)))

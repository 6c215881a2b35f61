"""Imports into the lake: all or nothing, once and only once, killed or not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from offline.errors import ImportDataError, LakeError
from offline.import_contract import Rules
from offline.import_tabular import TabularSource
from offline.importing import ImportRequest, import_episodes
from offline.lake import Lake
from offline.storage import Storage
from tests.offline.interop_kit import (
    ALL,
    CARTPOLE,
    MemorySource,
    assert_same,
    episode,
    episodes,
    import_into,
    lake_of,
    raw,
    read,
)

ROOT = Path(__file__).parents[2]


def rows_of(lake, table):
    return lake.table(table).to_arrow().to_pylist()


def test_rows_are_as_the_lake_has_them(tmp_path):
    made = episodes(CARTPOLE, 3, 2)
    lake = lake_of(tmp_path, CARTPOLE, made)
    steps = sorted(rows_of(lake, "steps"), key=lambda r: (r["episode_id"], r["t"]))
    assert [r["t"] for r in steps] == [0, 1, 2, 0, 1]
    assert [r["is_last"] for r in steps] == [False, False, True, False, True]
    assert [r["terminated"] for r in steps] == [False, False, True, False, False]
    assert [r["truncated"] for r in steps] == [False, False, False, False, True]
    assert [r["final_obs"] is None for r in steps] == [True, True, False, True, False]
    assert {r["policy_version"] for r in steps} == {-1}
    assert {r["fragment_id"] for r in steps} == {0}
    first, second = sorted(rows_of(lake, "episodes"), key=lambda r: r["episode_id"])
    assert (first["kind"], first["length"], first["seed"]) == ("import", 3, 0)
    assert first["return"] == pytest.approx(made[0].reward.sum())
    assert (second["truncated"], second["aborted"]) == (True, False)


def test_the_runs_table_says_what_was_imported_how(tmp_path):
    lake = lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 3))
    begun, ended = sorted(rows_of(lake, "runs"), key=lambda r: r["at"])
    assert (begun["algo"], begun["status"], ended["status"]) == ("import", "running", "finished")
    config = json.loads(begun["config"])
    (file,) = config["files"]
    assert file["path"].endswith("run.source")
    assert len(file["sha256"]) == 64
    assert config["rules"]["on_error"] == "fail"


@pytest.mark.parametrize("limit", [{"max_rows": 7}, {"max_bytes": 200}, {"max_rows": 1}])
@pytest.mark.parametrize("name", ["cartpole", "nested"])
def test_long_episodes_are_split_and_read_back_whole(tmp_path, name, limit):
    made = episodes(ALL[name], 3, 20, 1, 8, 2)
    source = MemorySource([raw(one) for one in made], tmp_path / "x", ALL[name])
    lake, report = import_into(tmp_path, source, **limit)
    assert (report.episodes, report.rows) == (5, 34)
    assert_same(read(lake), made)
    fragments = {r["fragment_id"] for r in rows_of(lake, "steps")}
    assert fragments == set(range(len(fragments)))
    assert len(fragments) > 3


def test_a_fragments_last_row_has_what_comes_after_it(tmp_path):
    (one,) = episodes(CARTPOLE, 5)
    source = MemorySource([raw(one)], tmp_path / "x", CARTPOLE)
    lake, _ = import_into(tmp_path, source, max_rows=2)
    steps = sorted(rows_of(lake, "steps"), key=lambda r: r["t"])
    assert [r["is_last"] for r in steps] == [False, True, False, True, True]
    assert steps[1]["final_obs"] == one.obs[2].astype(float).tolist()


def bad(one):
    return dataclasses.replace(raw(one), reward=np.full(len(one), np.nan))


class TestPolicy:
    def source(self, tmp_path, made):
        records = [bad(one) if i == 1 else raw(one) for i, one in enumerate(made)]
        return MemorySource(records, tmp_path / "x", CARTPOLE)

    def test_fail_imports_nothing_and_counts_everything(self, tmp_path):
        source = self.source(tmp_path, episodes(CARTPOLE, 3, 4, 5))
        with pytest.raises(ImportDataError) as caught:
            import_into(tmp_path, source)
        message = str(caught.value)
        assert "1 of 3 episodes break the contract; nothing was imported" in message
        assert "1 x NaN" in message
        assert "memory, row 0 (episode 'ep-1')" in message
        lake = Lake(tmp_path / "lake")
        assert [rows_of(lake, t) for t in ("steps", "episodes", "runs", "rejected")] == [[]] * 4

    def test_skip_keeps_the_good_and_lists_the_bad(self, tmp_path):
        made = episodes(CARTPOLE, 3, 4, 5)
        source = self.source(tmp_path, made)
        lake, report = import_into(tmp_path, source, rules=Rules(on_error="skip"))
        assert (report.episodes, report.rejected, dict(report.reasons)) == (2, 1, {"not_finite": 1})
        assert_same(read(lake), [made[0], made[2]])
        (rejected,) = rows_of(lake, "rejected")
        assert (rejected["episode_id"], rejected["reason"], rejected["row"]) == (
            *("ep-1", "not_finite"),
            0,
        )

    def test_a_missing_end_fails_even_where_errors_are_skipped(self, tmp_path):
        made = episodes(CARTPOLE, 3, 4)
        records = [raw(made[0]), dataclasses.replace(raw(made[1]), truncated=None)]
        source = MemorySource(records, tmp_path / "x", CARTPOLE)
        with pytest.raises(ImportDataError, match="--missing-end truncate"):
            import_into(tmp_path, source, rules=Rules(on_error="skip"))
        rules = Rules(on_error="skip", missing_end="reject")
        _, report = import_into(tmp_path, source, rules=rules)
        assert (report.episodes, report.rejected) == (1, 1)

    def test_nothing_good_is_no_import(self, tmp_path):
        source = MemorySource([bad(episode(CARTPOLE, "e", 3))], tmp_path / "x", CARTPOLE)
        with pytest.raises(ImportDataError, match="no episode to import"):
            import_into(tmp_path, source, rules=Rules(on_error="skip"))

    def test_a_dry_run_writes_nothing(self, tmp_path):
        source = MemorySource([raw(episode(CARTPOLE, "e", 3))], tmp_path / "x", CARTPOLE)
        storage = Storage.at(tmp_path / "lake")
        report = import_episodes(storage, source, ImportRequest(), dry_run=True)
        assert (report.status, report.episodes) == ("checked", 1)
        assert not (tmp_path / "lake").exists()


class TestOnce:
    def source(self, tmp_path, made):
        return MemorySource([raw(one) for one in made], tmp_path / "x", CARTPOLE)

    def test_the_same_files_are_not_imported_twice(self, tmp_path):
        source = self.source(tmp_path, episodes(CARTPOLE, 3))
        import_into(tmp_path, source)
        with pytest.raises(LakeError, match="in the lake already"):
            import_into(tmp_path, source)
        _, report = import_into(tmp_path, source, run_id="again")
        assert report.run_id == "again"

    def test_resuming_what_is_complete_changes_nothing(self, tmp_path):
        source = self.source(tmp_path, episodes(CARTPOLE, 3))
        lake, first = import_into(tmp_path, source)
        versions = lake.versions()
        report = import_episodes(lake.storage, source, ImportRequest(), resume=True)
        assert (report.status, report.episodes, report.rows) == ("already imported", 1, 3)
        assert (lake.versions(), report.run_id) == (versions, first.run_id)

    def test_a_training_runs_name_is_refused(self, tmp_path):
        import pyarrow as pa

        from offline import schemas as s
        from offline.tables import create_tables
        from offline.writer import LakeWriter

        storage = Storage.at(tmp_path / "lake")
        create_tables(storage)
        row = pa.Table.from_pylist([{"run_id": "ppo", "algo": "ppo"}], schema=s.RUNS.schema)
        with LakeWriter(storage, "ppo/driver") as writer:
            writer.write({"runs": row})
        with pytest.raises(LakeError, match="a run 'ppo' in the lake that is no import"):
            import_into(tmp_path, self.source(tmp_path, episodes(CARTPOLE, 3)), run_id="ppo")

    @pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\0", "..", "", "a" * 200, "é"])
    def test_names_that_are_paths_are_refused(self, tmp_path, name):
        source = self.source(tmp_path, episodes(CARTPOLE, 3))
        if name:
            with pytest.raises(ImportDataError, match="cannot name a run"):
                import_into(tmp_path, source, run_id=name)

    @pytest.mark.parametrize("write", range(6))
    @pytest.mark.parametrize("before", [True, False])
    def test_an_error_at_any_write_is_made_good_by_resume(
        self, tmp_path, monkeypatch, write, before
    ):
        from offline.writer import LakeWriter

        made = episodes(CARTPOLE, 3, 9, 2, 5)
        records = [raw(one) for one in made]
        records.insert(2, bad(episode(CARTPOLE, "bad", 3)))
        source = MemorySource(records, tmp_path / "x", CARTPOLE)
        options = {"max_rows": 5, "rules": Rules(on_error="skip")}
        original, calls = LakeWriter.write, iter(range(100))

        def failing(self, tables, *, fragments=()):
            stops = next(calls) == write
            if stops and before:
                raise KeyboardInterrupt
            written = original(self, tables, fragments=fragments)
            if stops:
                raise KeyboardInterrupt
            return written

        monkeypatch.setattr(LakeWriter, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            import_into(tmp_path, source, **options)
        monkeypatch.setattr(LakeWriter, "write", original)
        storage = Storage.at(tmp_path / "lake")
        report = import_episodes(storage, source, ImportRequest(**options), resume=True)
        lake = Lake(storage)
        assert (report.episodes, report.rows) == (4, 19)
        assert_same(read(lake), made)
        assert len(rows_of(lake, "steps")) == 19
        assert [r["episode_id"] for r in rows_of(lake, "rejected")] == ["bad"]
        assert sorted(r["status"] for r in rows_of(lake, "runs")) == ["finished", "running"]

    def test_another_files_content_does_not_go_on_under_the_name(self, tmp_path, monkeypatch):
        from offline.writer import LakeWriter

        source = self.source(tmp_path, episodes(CARTPOLE, 3))
        with monkeypatch.context() as patched:
            calls = iter(range(9))
            original = LakeWriter.write
            patched.setattr(
                LakeWriter,
                "write",
                lambda self, tables, fragments=(): (
                    original(self, tables, fragments=fragments) if next(calls) < 1 else 1 / 0
                ),
            )
            with pytest.raises(ZeroDivisionError):
                import_into(tmp_path, source, run_id="one")
        with pytest.raises(LakeError, match="was cut short.*--resume"):
            import_into(tmp_path, source, run_id="one")
        (tmp_path / "x").write_text("other")
        storage = Storage.at(tmp_path / "lake")
        with pytest.raises(LakeError, match="began with other files"):
            import_episodes(storage, source, ImportRequest(run_id="one"), resume=True)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    made = [raw(one) for one in episodes(CARTPOLE, 3)]

    class Changing(MemorySource):
        def records(self, spaces):
            self.file.write_text("changed")
            yield from self.records_

    with pytest.raises(ImportDataError, match="changed during the import"):
        import_into(tmp_path, Changing(made, tmp_path / "x", CARTPOLE))


CSV_HEADER = "episode_id,t,obs_0,action,reward,terminated\n"


def big_csv(path, count=300, rows=50):
    with path.open("w") as file:
        file.write(CSV_HEADER)
        for e in range(count):
            for t in range(rows):
                file.write(f"e{e},{t},{e + t / 64},{t % 2},{t},{int(t == rows - 1)}\n")


IMPORT = """
import sys
from offline.import_tabular import TabularSource
from offline.importing import ImportRequest, import_episodes
from offline.storage import Storage
import_episodes(Storage.at(sys.argv[1]), TabularSource("csv", (sys.argv[2],)),
                ImportRequest(run_id="big", max_rows=100), resume=True)
"""


@pytest.mark.fault
def test_an_import_killed_many_times_is_in_the_lake_once(tmp_path):
    path = tmp_path / "big.csv"
    big_csv(path)
    command = [sys.executable, "-c", IMPORT, str(tmp_path / "lake"), str(path)]
    kills, delay = 0, 0.7
    while True:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            assert process.wait(timeout=delay) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            delay = 0.7 + 0.05 * kills + (time.time_ns() % 100) / 500
    lake = Lake(tmp_path / "lake")
    assert kills > 0
    assert len(rows_of(lake, "episodes")) == 300
    assert len(rows_of(lake, "steps")) == 15_000
    found = read(lake)
    assert {len(one) for one in found} == {50}
    assert len({one.episode_id for one in found}) == 300


def test_memory_does_not_grow_with_the_file(tmp_path):
    """What is alive while a file is read is a batch, not the file."""
    path = tmp_path / "big.csv"
    big_csv(path, count=2000, rows=20)
    source = TabularSource("csv", (str(path),))
    alive, most = [], 0
    for record in source.records(None):
        alive.append(record)
        if len(alive) > 10:
            alive.pop(0)
        most = max(most, sum(one.obs.nbytes for one in alive))
    assert most <= 10 * 20 * 8 * 2

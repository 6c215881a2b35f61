"""Exports of a lake: back again bit for bit, into a folder and nowhere else."""

import json
from functools import partial

import pytest

from offline.errors import LakeError
from offline.export_episodes import EpisodeQuery
from offline.export_minari import write_minari
from offline.export_rllib import write_rllib
from offline.export_tabular import write_csv, write_parquet
from offline.exporting import export_episodes
from offline.import_files import find_files
from offline.import_minari import MinariSource
from offline.import_rllib import RllibSource
from offline.import_tabular import TabularSource
from tests.offline.interop_kit import (
    ALL,
    CARTPOLE,
    assert_same,
    episodes,
    import_into,
    lake_of,
    read,
)

WRITERS = {
    "csv": write_csv,
    "parquet": write_parquet,
    "rllib": write_rllib,
    "minari": partial(write_minari, dataset_id="test-v0"),
}
LACKS = {"csv": (), "parquet": (), "rllib": ("seed",), "minari": ("logp",)}


def source(kind, folder):
    if kind == "minari":
        return MinariSource.at([str(folder)])
    if kind == "rllib":
        return RllibSource(
            find_files([str(folder / "*worker*.json")], suffixes=[".json"], kind=kind)
        )
    return TabularSource(kind, find_files([str(folder)], suffixes=[f".{kind}"], kind=kind))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_exported_and_imported_again_is_the_same_to_the_bit(tmp_path, kind, name):
    spaces = ALL[name]
    made = episodes(spaces, 1, 7, 30)
    lake = lake_of(tmp_path / "from", spaces, made)
    assert_same(read(lake), made)
    report = export_episodes(lake, EpisodeQuery(), tmp_path / "out", WRITERS[kind], format_=kind)
    assert (report.episodes, report.rows, report.incomplete) == (3, 38, 0)
    again, imported = import_into(tmp_path / "to", source(kind, tmp_path / "out"))
    assert (imported.episodes, imported.rejected) == (3, 0)
    assert_same(read(again), made, without=LACKS[kind])


@pytest.mark.parametrize("kind", ["csv", "parquet", "rllib"])
def test_an_export_over_several_files_is_one_import(tmp_path, kind):
    made = episodes(CARTPOLE, *range(1, 12))
    lake = lake_of(tmp_path / "from", CARTPOLE, made)
    small = {"file_bytes": 500} if kind == "rllib" else {"file_rows": 20}
    write = partial(WRITERS[kind], **small)
    export_episodes(lake, EpisodeQuery(), tmp_path / "out", write, format_=kind)
    again, _ = import_into(tmp_path / "to", source(kind, tmp_path / "out"))
    assert_same(read(again), made, without=LACKS[kind])


def test_a_selection_is_by_run_condition_number_and_version(tmp_path):
    one = episodes(CARTPOLE, 3, 9)
    lake = lake_of(tmp_path, CARTPOLE, one, run_id="one")
    version = lake.episodes().version
    lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 5), run_id="two")
    assert_same(read(lake, runs=("one",)), one)
    assert [len(e) for e in read(lake, where=(("length", ">=", 5),), runs=("one",))] == [9]
    assert len(read(lake, limit=1)) == 1
    assert_same(read(lake, versions={"episodes": version}), one)
    assert {e.episode_id for e in read(lake)} == {"one/ep-0", "one/ep-1", "two/ep-0"}
    with pytest.raises(LakeError, match=r"no episode matches; runs with episodes are: .*two \(1\)"):
        read(lake, runs=("three",))


def test_runs_of_other_spaces_are_not_mixed(tmp_path):
    lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 3), run_id="one")
    lake = lake_of(tmp_path, ALL["nested"], episodes(ALL["nested"], 3), run_id="two")
    with pytest.raises(LakeError, match="other observation or action spaces"):
        export_episodes(lake, EpisodeQuery(), tmp_path / "out", write_parquet, format_="parquet")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_episodes_whose_steps_are_not_in_the_version_are_left_out_and_counted(tmp_path):
    lake = lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 3), run_id="one")
    version = lake.steps().version
    lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 4), run_id="two")
    query = EpisodeQuery(versions={"steps": version})
    report = export_episodes(lake, query, tmp_path / "out", write_csv, format_="csv")
    assert (report.episodes, report.incomplete) == (1, 1)


class TestFolder:
    @pytest.fixture
    def export(self, tmp_path):
        lake = lake_of(tmp_path / "storage", CARTPOLE, episodes(CARTPOLE, 3))

        def run(folder, **options):
            return export_episodes(
                lake, EpisodeQuery(), folder, write_csv, format_="csv", **options
            )

        return run

    def test_an_export_is_replaced_only_when_asked(self, export, tmp_path):
        export(tmp_path / "out")
        with pytest.raises(LakeError, match="--overwrite replaces it"):
            export(tmp_path / "out")
        export(tmp_path / "out", overwrite=True)
        assert [p.name for p in tmp_path.glob("*out*")] == ["out"]

    def test_a_folder_with_something_else_in_it_is_left_alone(self, export, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("x")
        with pytest.raises(LakeError, match="not empty and no export"):
            export(tmp_path / "home", overwrite=True)
        assert (tmp_path / "home" / "thesis.tex").read_text() == "x"

    def test_what_somebody_put_into_an_export_survives_its_replacement(self, export, tmp_path):
        export(tmp_path / "out")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        export(tmp_path / "out", overwrite=True)
        (aside,) = tmp_path.glob(".out.replaced-*")
        assert [p.name for p in aside.rglob("*")] == ["notes.txt"]

    def test_a_manifest_that_lists_files_outside_removes_none(self, export, tmp_path):
        export(tmp_path / "out")
        (tmp_path / "precious").write_text("x")
        manifest = tmp_path / "out" / "export.json"
        data = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**data, "files": ["../precious"]}))
        export(tmp_path / "out", overwrite=True)
        assert (tmp_path / "precious").read_text() == "x"

    @pytest.mark.parametrize("name", ["a\0b", "", "s3://bucket/x"])
    def test_a_target_that_is_no_folder_is_refused(self, export, name):
        with pytest.raises(LakeError, match="no folder"):
            export(name)

    def test_links_and_files_are_refused(self, export, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "there")
        (tmp_path / "file").touch()
        with pytest.raises(LakeError, match="is a link"):
            export(tmp_path / "link")
        with pytest.raises(LakeError, match="is a file"):
            export(tmp_path / "file")

    def test_hostile_episode_ids_name_no_file(self, tmp_path):
        import dataclasses

        (made,) = episodes(CARTPOLE, 3)
        hostile = dataclasses.replace(made, episode_id="../../../etc/passwd")
        lake = lake_of(tmp_path / "storage", CARTPOLE, [hostile])
        for kind, write in WRITERS.items():
            export_episodes(lake, EpisodeQuery(), tmp_path / "x" / kind, write, format_=kind)
        names = {p.name for p in (tmp_path / "x").rglob("*")}
        assert not any("passwd" in name for name in names)
        assert not (tmp_path / "etc").exists()


def test_csv_refuses_frames_of_a_screen(tmp_path):
    import numpy as np
    from gymnasium.spaces import Box, Discrete

    from offline.exchange import Spaces

    spaces = Spaces(Box(0, 255, (84, 84, 1), np.uint8), Discrete(2), "test")
    lake = lake_of(tmp_path, spaces, episodes(spaces, 3))
    with pytest.raises(LakeError, match="7,056 numbers.*export parquet"):
        export_episodes(lake, EpisodeQuery(), tmp_path / "out", write_csv, format_="csv")


def test_rllib_lines_have_its_columns(tmp_path):
    lake = lake_of(tmp_path, CARTPOLE, episodes(CARTPOLE, 3, 2))
    report = export_episodes(lake, EpisodeQuery(), tmp_path / "out", write_rllib, format_="rllib")
    lines = (tmp_path / "out" / report.files[0]).read_text().splitlines()
    batch = json.loads(lines[1])
    assert batch["type"] == "SampleBatch"
    assert batch["t"] == [0, 1]
    assert batch["unroll_id"] == [1, 1]
    assert batch["terminateds"] == [False, False]
    assert batch["truncateds"] == [False, True]
    assert batch["new_obs"][0] == batch["obs"][1]
    assert {"eps_id", "agent_index", "actions", "rewards", "action_logp"} <= batch.keys()

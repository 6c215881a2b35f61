"""Minari's folders: its own layouts read without minari, spaces and padding included."""

import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from offline.errors import ImportDataError
from offline.exchange import Episode, Spaces
from offline.export_minari import write_minari
from offline.import_minari import MinariSource
from offline.minari_layout import space_from_minari, space_to_minari
from tests.offline.interop_kit import ALL, NESTED, accepted, assert_same, episodes

SPACES = Spaces(Box(-np.inf, np.inf, (2,), np.float64), Discrete(3), "test")


def metadata(folder, *, kind="arrow", total=2, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "total_episodes": total,
        "total_steps": 0,
        "data_format": kind,
        "dataset_id": "test-v0",
        "minari_version": "~=0.5",
        "observation_space": json.dumps(space_to_minari(SPACES.obs)),
        "action_space": json.dumps(space_to_minari(SPACES.action)),
        **changes,
    }
    (folder / "metadata.json").write_text(json.dumps(about))


def batch(number, steps, *, terminated=True):
    """The columns that Minari's ArrowStorage makes, the episode's number among them."""
    rows = steps + 1
    obs = np.arange(rows * 2, dtype=np.float64)
    last = np.arange(rows) == steps - 1
    return pa.RecordBatch.from_pydict(
        {
            "episode_id": np.full(rows, number, np.int32),
            "observations": pa.FixedSizeListArray.from_arrays(obs, 2),
            "actions": pa.array(np.arange(rows) % 3),
            "rewards": np.arange(rows, dtype=np.float64),
            "terminations": last & terminated,
            "truncations": last & (not terminated),
            "infos": pa.array([{"x": 1.0}] * rows),
        }
    )


def dataset(folder, kind="arrow"):
    """As Minari writes it: `write_dataset`, partitioned by the episode's number."""
    metadata(folder, kind=kind)
    for number, steps in enumerate((3, 5)):
        made = batch(number, steps, terminated=number == 0)
        ds.write_dataset(
            made,
            folder,
            format=kind,
            partitioning=["episode_id"],
            existing_data_behavior="overwrite_or_ignore",
        )
        about = {"id": number, "total_steps": steps, "seed": 7 + number}
        (folder / str(number) / "metadata.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_what_minari_writes_is_read(tmp_path, kind):
    dataset(tmp_path / "d" / "data", kind)
    source = MinariSource.at([str(tmp_path / "d")])
    one, two = accepted(source)
    assert (one.episode_id, len(one), one.terminated, one.seed) == ("0", 3, True, 7)
    assert (two.episode_id, len(two), two.truncated, two.seed) == ("1", 5, True, 8)
    assert one.obs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert one.final_obs.tolist() == [[6, 7]]
    assert one.action.tolist() == [0, 1, 2]
    assert source.ignored == {"infos"}


def test_the_data_folder_may_be_named_itself(tmp_path):
    dataset(tmp_path / "data")
    assert len(accepted(MinariSource.at([str(tmp_path / "data")]))) == 2


def test_hdf5_is_read_with_nested_spaces(tmp_path):
    (made,) = episodes(NESTED, 4)
    spaces = {
        "observation_space": json.dumps(space_to_minari(NESTED.obs)),
        "action_space": json.dumps(space_to_minari(NESTED.action)),
    }
    metadata(tmp_path, kind="hdf5", total=1, **spaces)
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group.attrs.update({"id": 0, "seed": 0, "total_steps": 4})
        obs, final = made.obs, made.final_obs
        group["observations/image"] = np.concatenate([obs["image"], final["image"]])
        group["observations/mask"] = np.concatenate([obs["mask"], final["mask"]])
        for i in range(2):
            both = [obs["arm"][i], final["arm"][i]]
            group[f"observations/arm/_index_{i}"] = np.concatenate(both)
        for name, values in made.action.items():
            group[f"actions/{name}"] = values
        group["rewards"] = made.reward
        group["terminations"] = np.arange(4) == 3
        group["truncations"] = np.zeros(4, bool)
    (got,) = accepted(MinariSource.at([str(tmp_path)]))
    assert got.episode_id == "0"
    assert_same([got], [made.__class__(**{**vars(made), "episode_id": "0"})], without=["logp"])


def test_a_missing_episode_is_named_and_the_others_are_read(tmp_path):
    dataset(tmp_path)
    (tmp_path / "0" / "part-0.arrow").unlink()
    bad, good = accepted(MinariSource.at([str(tmp_path)]))
    assert (bad[0].reason, bad[0].row) == ("bad_record", 0)
    assert isinstance(good, Episode)


def test_a_damaged_episode_is_named(tmp_path):
    dataset(tmp_path)
    (tmp_path / "1" / "part-0.arrow").write_bytes(b"ARROW1 no")
    good, bad = accepted(MinariSource.at([str(tmp_path)]))
    assert isinstance(good, Episode)
    assert bad[0].reason == "bad_record"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "zarr"}, "data_format is 'zarr'"),
        ({"total": "many"}, "no number"),
        ({"observation_space": '{"type": "Text"}'}, "Text space"),
        ({"observation_space": '{"type": "Box"}'}, "no space of Minari"),
    ],
)
def test_metadata_that_cannot_be_read_is_explained(tmp_path, changes, message):
    metadata(tmp_path, **changes)
    with pytest.raises(ImportDataError, match=message):
        MinariSource.at([str(tmp_path)]).stated_spaces()


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(ImportDataError, match=r"no data/metadata.json"):
        MinariSource.at([str(tmp_path)])


def test_an_environment_is_not_made_unasked(tmp_path):
    dataset(tmp_path)
    metadata(tmp_path, observation_space=None, env_spec='{"id": "x", "entry_point": "os:system"}')
    source = MinariSource.at([str(tmp_path)])
    assert source.stated_spaces() is None
    with pytest.raises(ImportDataError, match="not made unasked"):
        list(source.records(None))


def test_frames_packed_as_jpeg_are_refused(tmp_path):
    space = json.dumps(space_to_minari(Box(0, 255, (4, 4, 3), np.uint8)))
    metadata(tmp_path, kind="parquet", total=1, observation_space=space)
    made = pa.table({**dict(zip(batch(0, 1).schema.names, batch(0, 1).columns, strict=True))})
    made = made.set_column(1, "observations", pa.array([b"\xff\xd8"] * 2))
    ds.write_dataset(
        made,
        tmp_path,
        format="parquet",
        partitioning=["episode_id"],
        existing_data_behavior="overwrite_or_ignore",
    )
    with pytest.raises(ImportDataError, match="packed as JPEG"):
        accepted(MinariSource.at([str(tmp_path)]))


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.inf, (2, 3), np.float32),
        Box(np.array([0, -5]), np.array([1, 5]), dtype=np.int64),
        Box(0, 255, (4,), np.uint8),
        Discrete(3, start=-1),
        MultiDiscrete([2, 3]),
        MultiBinary(4),
        MultiBinary([2, 2]),
        Dict([("b", Discrete(2)), ("a", Tuple([Discrete(2), Box(0, 1, (1,), np.float64)]))]),
    ],
)
def test_spaces_come_back(space):
    data = json.loads(json.dumps(space_to_minari(space)))
    assert space_from_minari(json.dumps(data), where="x") == space


def test_spaces_minari_has_no_form_for_are_refused():
    with pytest.raises(ImportDataError, match="no form"):
        space_to_minari(Text(3))


@pytest.mark.parametrize("name", ALL)
def test_an_export_is_laid_out_as_minari_reads_it(tmp_path, name):
    """As ArrowStorage.get_episodes reads: a dataset per episode, one batch each."""
    spaces = ALL[name]
    made = episodes(spaces, 3, 6)
    write_minari(iter(made), tmp_path, spaces, dataset_id="x-v0")
    about = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert (about["total_episodes"], about["total_steps"]) == (2, 9)
    assert isinstance(about["observation_space"], str)
    parts = [
        ds.dataset(
            f"{tmp_path}/data/{i}", format="arrow", ignore_prefixes=["_", ".", "metadata.json"]
        )
        for i in range(2)
    ]
    for one, read in zip(made, ds.dataset(parts).to_batches(), strict=True):
        assert len(read) == len(one) + 1
        assert read["rewards"].to_numpy()[:-1].tolist() == one.reward.tolist()
        assert read["terminations"].to_pylist()[len(one) - 1] is one.terminated
        assert json.loads((tmp_path / "data" / "0" / "metadata.json").read_text())["id"] == 0

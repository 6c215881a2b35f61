"""CSV and parquet: columns found by mapping or by name, bad cells and lines named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from offline.errors import ImportDataError
from offline.exchange import Episode, Spaces
from offline.import_files import find_files
from offline.import_spaces import infer_spaces
from offline.import_tabular import TabularSource, parse_mapping
from tests.offline.interop_kit import accepted

HEADER = "episode_id,t,obs_0,obs_1,action,reward,terminated,truncated\n"
SPACES = Spaces(Box(-np.inf, np.inf, (2,), np.float32), Discrete(2), "test")


def csv(tmp_path, text, *words, name="a.csv"):
    path = tmp_path / name
    path.write_text(text)
    return TabularSource("csv", (str(path),), parse_mapping(words))


def parquet(tmp_path, columns, *words, name="a.parquet"):
    path = tmp_path / name
    pq.write_table(pa.table(columns), path)
    return TabularSource("parquet", (str(path),), parse_mapping(words))


def good_lines(name="a", rows=3):
    end = ["false"] * (rows - 1) + ["true"]
    return "".join(f"{name},{t},0.5,{t},1,1.0,{end[t]},false\n" for t in range(rows))


def test_columns_are_found_by_their_names(tmp_path):
    source = csv(tmp_path, HEADER + good_lines())
    (one,) = accepted(source, SPACES)
    assert isinstance(one, Episode)
    np.testing.assert_array_equal(one.obs, np.array([[0.5, 0], [0.5, 1], [0.5, 2]], np.float32))
    assert (one.action.tolist(), one.terminated) == ([1, 1, 1], True)


def test_columns_can_be_mapped(tmp_path):
    text = "run;x;v;u;r;fin\n".replace(";", ",") + "7,1,2,0,0.5,0\n7,3,4,1,0.5,1\n"
    source = csv(
        tmp_path,
        text,
        "episode_id=run",
        "obs=x,v",
        "action=u",
        "reward=r",
        "truncated=fin",
        "terminated=",
    )
    (one,) = accepted(source, SPACES)
    assert (one.episode_id, one.truncated, len(one)) == ("7", True, 1)
    np.testing.assert_array_equal(one.final_obs, [[3, 4]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["obs=obs_0,obs_l"], "no column 'obs_l'; did you mean obs_[01]?"),
        (["actoin=action"], "no 'actoin'; did you mean action?"),
        (["reward"], "expected NAME=COLUMN"),
        (["reward=a", "reward=b"], "given twice"),
    ],
)
def test_a_wrong_mapping_is_answered_with_the_nearest_name(tmp_path, words, message):
    with pytest.raises(ImportDataError, match=message):
        list(csv(tmp_path, HEADER + good_lines(), *words).records(None))


def test_done_says_not_which_end_it_is(tmp_path):
    text = "episode_id,obs,action,reward,done\na,1,0,1,0\na,1,0,1,1\n"
    with pytest.raises(ImportDataError, match="--map terminated=done or --map truncated=done"):
        list(csv(tmp_path, text).records(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episode_id,obs,action,terminated\na,1,0,1\n", "no column for reward"),
        ("obs,action,reward\n1,0,1\n", "neither episode ids nor ends"),
        ("a,a\n1,2\n", "two columns 'a'"),
    ],
)
def test_a_table_without_what_is_needed_is_refused(tmp_path, text, message):
    with pytest.raises(ImportDataError, match=message):
        list(csv(tmp_path, text).records(None))


def test_a_cell_that_is_no_number_spoils_its_episode_only(tmp_path):
    bad = good_lines("b").replace("b,1,0.5,1", "b,1,0.5,one")
    source = csv(tmp_path, HEADER + good_lines("a") + bad + good_lines("c"))
    first, (violation,), last = accepted(source, SPACES)
    assert isinstance(first, Episode)
    assert isinstance(last, Episode)
    assert str(violation).endswith(
        "a.csv, line 6 (episode 'b'): 'one' in column 'obs_1' is no number"
    )


def test_a_line_cut_short_is_named_and_spoils_the_episode_it_is_in(tmp_path):
    bad = good_lines("b").replace("b,1,0.5,1,1,1.0,false,false", "b,1,0.5")
    source = csv(tmp_path, HEADER + good_lines("a") + bad + good_lines("c"))
    outcomes = accepted(source, SPACES)
    good = [one.episode_id for one in outcomes if isinstance(one, Episode)]
    assert good == ["a", "c"]
    assert next(v.row for found in outcomes if isinstance(found, list) for v in found) == 6


def test_an_empty_cell_is_no_zero(tmp_path):
    text = HEADER + good_lines().replace("a,1,0.5,1,1,1.0", "a,1,0.5,1,,1.0")
    (found,) = accepted(csv(tmp_path, text), SPACES)
    assert {(v.reason, v.row) for v in found} == {("not_finite", 3)}


def test_csv_with_several_batches_keeps_line_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("offline.import_csv._BLOCK_BYTES", 4096)
    lines = [good_lines(str(i)) for i in range(500)]
    lines[400] = lines[400].replace("400,1,", "400,x,")
    lines[100] = lines[100].replace(",1.0,false,false\n", "\n", 1)
    outcomes = accepted(csv(tmp_path, HEADER + "".join(lines)), SPACES)
    rows = sorted(v.row for found in outcomes if isinstance(found, list) for v in found)
    assert 100 * 3 + 2 in rows
    assert 400 * 3 + 3 in rows
    assert sum(isinstance(one, Episode) for one in outcomes) == 498


def test_spaces_are_inferred_and_hold_the_data(tmp_path):
    source = csv(tmp_path, HEADER + good_lines())
    spaces = infer_spaces(source.records(None), untyped=source.untyped)
    assert spaces.obs == Box(-np.inf, np.inf, (2,), np.float32)
    assert spaces.action == Discrete(2)
    assert spaces.origin == "inferred from the data"


@pytest.mark.parametrize(
    ("obs", "action", "expected"),
    [
        ([[0.1], [0.2]], [1, 0], (Box(-np.inf, np.inf, (1,), np.float64), Discrete(2))),
        ([3, 4], [[0, 2], [1, 1]], (Discrete(5), MultiDiscrete([2, 3]))),
        (
            np.zeros((2, 1), np.float32).tolist(),
            [[-1, 2], [0, 1]],
            (
                Box(-np.inf, np.inf, (1,), np.float32),
                Box(-np.inf, np.inf, (2,), np.int64),
            ),
        ),
    ],
)
def test_inferred_spaces_follow_the_columns_types(tmp_path, obs, action, expected):
    columns = {"episode_id": ["a", "a"], "obs": obs, "action": action}
    columns |= {"reward": [1.0, 2.0], "terminated": [False, True]}
    source = parquet(tmp_path, columns)
    spaces = infer_spaces(source.records(None), untyped=source.untyped)
    assert (spaces.obs, spaces.action) == expected


def test_parquet_rows_of_mixed_lengths_are_named(tmp_path):
    columns = {
        "episode_id": ["a", "a", "b", "b"],
        "obs": [[1.0, 2.0], [1.0], [1.0, 2.0], [3.0, 4.0]],
        "action": [0, 1, 0, 1],
        "reward": [1.0] * 4,
        "terminated": [False, True, False, True],
    }
    bad, good = accepted(parquet(tmp_path, columns), SPACES)
    assert isinstance(good, Episode)
    assert [(v.reason, v.row, v.message) for v in bad] == [
        ("mixed_lengths", 1, "obs has 1 values, other rows 2")
    ]


def test_frames_as_bytes_need_a_space_and_its_size(tmp_path):
    columns = {
        "episode_id": ["a", "a", "b"],
        "obs": [b"\1" * 12, b"\2" * 12, b"\3" * 11],
        "action": [0, 1, 0],
        "reward": [1.0] * 3,
        "terminated": [False, True, True],
    }
    source = parquet(tmp_path, columns)
    with pytest.raises(ImportDataError, match="'obs' holds bytes; state what they are"):
        list(source.records(None))
    spaces = Spaces(Box(0, 255, (2, 2, 3), np.uint8), Discrete(2), "test")
    good, bad = accepted(source, spaces)
    assert good.obs.shape == (2, 2, 2, 3)
    assert bad[0].message == "obs has 11 bytes, expected 12"


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ImportDataError, match="no parquet that can be read"):
        list(TabularSource("parquet", (str(tmp_path / "a.parquet"),)).records(None))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pkl", b"\x80\x04K\x01."),
        ("a.csv", b"\x80\x04K\x01."),
        ("a.npz", b"PK\3\4"),
        ("a.npy", b"\x93NUMPY"),
        ("a.pt", b"PK\3\4"),
    ],
)
def test_pickles_are_refused_whatever_they_are_called(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportDataError, match="never read"):
        find_files([str(tmp_path / name)], suffixes=[".csv"], kind="csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://b/x.csv", "files on this machine"),
        ("a\0b", "no path"),
        ("/nowhere", "does not exist"),
    ],
)
def test_sources_are_local_files(source, message):
    with pytest.raises(ImportDataError, match=message):
        find_files([source], suffixes=[".csv"], kind="csv")

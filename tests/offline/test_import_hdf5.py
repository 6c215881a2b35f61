"""D4RL's HDF5: what ends an episode is never guessed."""

import sys

import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from offline.errors import ImportDataError
from offline.exchange import Episode, Spaces
from offline.import_hdf5 import Hdf5Source
from offline.import_spaces import infer_spaces
from tests.offline.interop_kit import accepted

SPACES = Spaces(Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32), "test")


def arrays(rows=10, ends=(4, 9), cuts=()):
    obs = np.arange(2 * rows + 2, dtype=np.float32).reshape(-1, 2)
    made = {
        "observations": obs[:-1],
        "actions": np.zeros((rows, 1), np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminals": np.isin(np.arange(rows), ends),
        "timeouts": np.isin(np.arange(rows), cuts),
        "next_observations": obs[1:],
    }
    return made


def source(tmp_path, made, *, without=(), timeouts="refuse", name="a.hdf5"):
    with h5py.File(tmp_path / name, "w") as file:
        for key, values in made.items():
            if key not in without:
                file[key] = values
    return Hdf5Source((str(tmp_path / name),), timeouts=timeouts)


def test_terminals_and_timeouts_end_episodes(tmp_path):
    one, two = accepted(source(tmp_path, arrays(ends=(4,), cuts=(9,))), SPACES)
    assert (one.terminated, one.truncated, len(one)) == (True, False, 5)
    assert (two.terminated, two.truncated, len(two)) == (False, True, 5)
    assert two.final_obs.tolist() == [[20.0, 21.0]]


def test_without_next_observations_a_timeouts_last_step_becomes_the_final_observation(tmp_path):
    made = source(tmp_path, arrays(ends=(), cuts=(4, 9)), without=["next_observations"])
    one, _ = accepted(made, SPACES)
    assert (len(one), one.final_obs.tolist()) == (4, [[8.0, 9.0]])


def test_missing_timeouts_are_refused_and_the_option_is_named(tmp_path):
    made = source(tmp_path, arrays(), without=["timeouts"])
    with pytest.raises(ImportDataError, match=r"--timeouts N .*--timeouts none"):
        list(made.records(None))


@pytest.mark.parametrize(
    ("ends", "limit", "lengths", "cuts"),
    [
        ((9,), 4, [4, 4, 2], [True, True, False]),
        ((3, 9), 4, [4, 4, 2], [False, True, False]),
        ((5, 9), 100, [6, 4], [False, False]),
        ((9,), 1, [1] * 10, [True] * 9 + [False]),
    ],
)
@pytest.mark.parametrize("batch", [3, 1000])
def test_timeouts_after_a_number_of_steps(tmp_path, monkeypatch, ends, limit, lengths, cuts, batch):
    monkeypatch.setattr("offline.import_hdf5._BATCH_ROWS", batch)
    made = source(tmp_path, arrays(ends=ends), without=["timeouts"], timeouts=limit)
    found = accepted(made, SPACES)
    assert [len(one) for one in found] == lengths
    assert [one.truncated for one in found] == cuts


def test_terminals_alone_leave_the_last_episode_open(tmp_path):
    made = source(tmp_path, arrays(ends=(4,)), without=["timeouts"], timeouts="none")
    good, bad = accepted(made, SPACES)
    assert isinstance(good, Episode)
    assert [v.reason for v in bad] == ["no_end"]


def test_arrays_of_different_lengths_are_explained(tmp_path):
    made = arrays()
    made["rewards"] = made["rewards"][:-1]
    with pytest.raises(ImportDataError, match=r"rewards 9.*which rows belong together"):
        list(source(tmp_path, made).records(None))


def test_missing_arrays_and_what_there_is_are_named(tmp_path):
    with pytest.raises(ImportDataError, match=r"no actions; .* It has next_observations"):
        list(source(tmp_path, arrays(), without=["actions"]).records(None))


def test_a_column_of_one_number_per_row_may_be_a_matrix(tmp_path):
    made = arrays()
    made |= {name: made[name][:, None] for name in ("rewards", "terminals", "timeouts")}
    assert len(accepted(source(tmp_path, made), SPACES)) == 2


def test_other_entries_are_ignored_and_named(tmp_path):
    made = source(tmp_path, {**arrays(), "infos/qpos": np.zeros(10), "metadata/algo": "SAC"})
    accepted(made, SPACES)
    assert made.ignored == {"infos/qpos", "metadata/algo"}


def test_spaces_are_inferred(tmp_path):
    spaces = infer_spaces(source(tmp_path, arrays()).records(None), untyped=False)
    assert spaces.obs == Box(-np.inf, np.inf, (2,), np.float32)
    assert spaces.action == Box(-np.inf, np.inf, (1,), np.float32)
    made = {**arrays(), "actions": np.arange(10) % 4}
    spaces = infer_spaces(source(tmp_path, made).records(None), untyped=False)
    assert spaces.action == Discrete(4)


def test_links_out_of_the_file_are_refused(tmp_path):
    source(tmp_path, {"secret": np.zeros((10, 2), np.float32)}, name="other.hdf5")
    made = source(tmp_path, arrays(), without=["observations"])
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["observations"] = h5py.ExternalLink("other.hdf5", "secret")
    with pytest.raises(ImportDataError, match="is a link to other.hdf5"):
        list(made.records(None))


def test_objects_are_refused(tmp_path):
    made = {**arrays(), "actions": np.array(["a"] * 10, dtype=h5py.string_dtype())}
    with pytest.raises(ImportDataError, match="expected numbers"):
        list(source(tmp_path, made).records(None))


def test_without_h5py_the_install_command_is_given(tmp_path, monkeypatch):
    made = source(tmp_path, arrays())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportDataError, match="pip install h5py"):
        list(made.records(None))


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.hdf5").write_text("no")
    with pytest.raises(ImportDataError, match="no HDF5"):
        list(Hdf5Source((str(tmp_path / "a.hdf5"),)).records(None))

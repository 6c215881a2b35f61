"""Episodes found by id and by figures, and their steps read back as they were rolled out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.errors import LakeError
from offline.lake import Lake
from offline.traces import find_episode, is_frame, list_episodes, numbers_of, read_trace
from rl_ops import columns as c
from rl_ops.spaces import codec_for
from rl_ops.tree import tree_leaves
from tests.envs import OBS_SPACES
from tests.offline.traces_kit import at, empty_lake, frame_rows, log_run, put
from tests.rollout_kit import env_spec, policy_spec


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return empty_lake(tmp_path / "lake")


def episode_row(episode_id: str, **columns: Any) -> dict[str, Any]:
    row = {"run_id": "r", "session": 0, "kind": "train", "length": 3, "return": 1.0}
    flags = {"terminated": True, "truncated": False, "aborted": False}
    return {"episode_id": episode_id, **row, **flags, **columns}


@pytest.fixture
def listed(lake: Lake) -> Lake:
    rows = [
        episode_row("r/00000.0/0000000", length=9, ended_at=at(1), **{"return": 5.0}),
        episode_row("r/00000.0/0000001", length=2, ended_at=at(3), **{"return": -1.0}),
        episode_row("r/00001.0/0000000", length=4, ended_at=at(2), aborted=True, terminated=False),
        episode_row("q/7", run_id="q", kind="import", ended_at=None, **{"return": None}),
    ]
    put(lake, "episodes", rows)
    put(lake, "runs", [{"run_id": "r", "session": 0, "env": "CartPole-v1"}])
    return lake


def ids(rows: list[Any]) -> list[str]:
    return [row.episode_id for row in rows]


def test_episodes_come_the_greatest_first(listed: Lake) -> None:
    newest = ["r/00000.0/0000001", "r/00001.0/0000000", "r/00000.0/0000000", "q/7"]
    assert ids(list_episodes(listed)) == newest
    assert ids(list_episodes(listed, sort="return"))[::3] == ["r/00000.0/0000000", "q/7"]
    assert [row.length for row in list_episodes(listed, sort="length", limit=2)] == [9, 4]


def test_episodes_are_chosen_by_run_kind_and_ending(listed: Lake) -> None:
    assert ids(list_episodes(listed, run_id="q")) == ["q/7"]
    assert ids(list_episodes(listed, kind="import")) == ["q/7"]
    assert ids(list_episodes(listed, kind="evaluation", run_id="r")) == []
    assert ids(list_episodes(listed, aborted=True)) == ["r/00001.0/0000000"]
    assert [row.ending for row in list_episodes(listed, run_id="r")] == [
        "terminated",
        "aborted",
        "terminated",
    ]


def test_the_environment_is_that_of_the_run(listed: Lake) -> None:
    found = {row.run_id: row.env for row in list_episodes(listed)}
    assert found == {"r": "CartPole-v1", "q": None}


def test_a_run_that_is_not_there_is_named_with_the_nearest(listed: Lake) -> None:
    put(listed, "runs", [{"run_id": "cartpole-ppo", "session": 0}])
    with pytest.raises(LakeError, match="no run 'cartpole-pp' .* did you mean 'cartpole-ppo'"):
        list_episodes(listed, run_id="cartpole-pp")
    assert list_episodes(listed, run_id="cartpole-ppo") == []


def test_sorting_by_anything_else_is_refused(listed: Lake) -> None:
    with pytest.raises(ValueError, match=r"length\"; DROP"):
        list_episodes(listed, sort='length"; DROP')


def test_an_id_or_a_beginning_that_only_it_has_finds_an_episode(listed: Lake) -> None:
    assert find_episode(listed, "q/7").run_id == "q"
    assert find_episode(listed, "r/00001").episode_id == "r/00001.0/0000000"
    assert find_episode(listed, "q").episode_id == "q/7"


def test_a_beginning_of_several_lists_them(listed: Lake) -> None:
    with pytest.raises(LakeError, match=r"several episodes: 'r/00000.0/0000000' of run 'r', 'r/00"):
        find_episode(listed, "r/0")


def test_a_whole_id_wins_over_longer_ones(listed: Lake) -> None:
    put(listed, "episodes", [episode_row("q/70", run_id="q")])
    assert find_episode(listed, "q/7").episode_id == "q/7"


def test_a_wrong_id_gets_the_nearest(listed: Lake) -> None:
    with pytest.raises(LakeError, match=r"no episode 'r/00000.0/0000002'; .* 'r/00000.0/000000"):
        find_episode(listed, "r/00000.0/0000002")


def test_an_id_is_a_value_and_no_pattern(listed: Lake) -> None:
    for given in ("r/%", "r/_____.0", "' OR true --"):
        with pytest.raises(LakeError, match="no episode"):
            find_episode(listed, given)


def test_ids_that_two_runs_share_need_the_run(listed: Lake) -> None:
    put(listed, "episodes", [episode_row("q/7", run_id="other")])
    with pytest.raises(LakeError, match="'q/7' of run 'q', 'q/7' of run 'other'|of run 'other'"):
        find_episode(listed, "q/7")
    assert find_episode(listed, "q/7", run_id="other").run_id == "other"


def test_an_empty_lake_says_so(lake: Lake) -> None:
    assert list_episodes(lake) == []
    with pytest.raises(LakeError, match="the lake has no episodes"):
        find_episode(lake, "x")


@pytest.mark.parametrize("name", sorted(OBS_SPACES.keys() - {"image"}))
def test_steps_come_back_as_they_were_rolled_out(lake: Lake, name: str) -> None:
    env = env_spec("spaces_env", obs=name, action="dict", length=5)
    made = log_run(lake, env, count=3, num_envs=2, steps=4)
    obs_codec = codec_for(policy_spec(env).obs_space)
    row = find_episode(lake, "run/00001.0/0000001")
    trace = read_trace(lake, row)
    rows = [
        (table.column(c.T)[i].as_py(), table, i)
        for table in made
        for i, episode in enumerate(table.column(c.EPISODE_ID).to_pylist())
        if episode == row.episode_id
    ]
    assert len(trace) == len(rows) == row.length == 5
    assert trace.column(c.T).tolist() == [0, 1, 2, 3, 4]
    for (t, table, i), k in zip(sorted(rows, key=lambda x: x[0]), range(5), strict=True):
        assert t == k
        expected = obs_codec.decode(table.column(c.OBS).slice(i, 1))
        for got, wanted in zip(tree_leaves(trace.obs), tree_leaves(expected), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got[k], wanted[0])
    assert set(trace.action) == {"go", "how"}


def test_frames_come_back_bit_for_bit(lake: Lake) -> None:
    space = OBS_SPACES["image"]
    frames = np.random.default_rng(0).integers(0, 256, (4, *space.shape), np.uint8)
    put(lake, "steps", frame_rows(lake, frames))
    put(lake, "episodes", [episode_row("r/frames", length=4)])
    trace = read_trace(lake, find_episode(lake, "r/frames"))
    np.testing.assert_array_equal(trace.obs, frames)
    assert trace.action.tolist() == [0, 1, 0, 1]
    assert list(trace.series()) == ["reward"]


def test_an_episode_that_nobody_saw_end_is_found_by_its_steps(lake: Lake) -> None:
    log_run(lake, env_spec("count", lengths=(7,)), count=2, num_envs=1, steps=5)
    import deltalake

    deltalake.DeltaTable(lake.storage.table_uri("episodes")).delete()
    row = find_episode(lake, "run/00000.0/0000001")
    assert (row.ending, row.length, row.return_, row.kind) == ("unfinished", 3, 3.0, None)
    assert (row.fragment_first, row.fragment_last, row.env) == (1, 1, "tests.envs:count")
    assert len(read_trace(lake, row)) == 3


def test_of_an_evaluation_it_is_known_that_it_ended(lake: Lake) -> None:
    flags = {"terminated": None, "truncated": None, "aborted": False}
    put(lake, "episodes", [episode_row("r/evaluation/0.00000/00001", kind="evaluation", **flags)])
    assert find_episode(lake, "r/evaluation").ending == "ended"


def test_an_episode_without_steps_says_why(listed: Lake) -> None:
    with pytest.raises(LakeError, match="has no steps of episode 'q/7'"):
        read_trace(listed, find_episode(listed, "q/7"))


def test_observations_that_were_not_logged_are_none(lake: Lake) -> None:
    log_run(lake, env_spec("count"), count=1, columns=("value",))
    trace = read_trace(lake, list_episodes(lake)[0])
    assert trace.obs is None
    assert set(trace.series()) == {"reward", "value"}


def test_series_are_reward_value_and_the_first_numbers(lake: Lake) -> None:
    log_run(lake, env_spec("count", lengths=(4,), tagged=True), count=1, num_envs=1)
    trace = read_trace(lake, find_episode(lake, "run/00000.0/0000001"))
    series = trace.series(max_obs=2)
    assert list(series) == ["reward", "value", "obs[0]", "obs[1]"]
    assert series["reward"].tolist() == [0, 1, 2, 3]
    assert series["obs[0]"].tolist() == [1, 1, 1, 1]
    assert series["obs[1]"].tolist() == [0, 1, 2, 3]


def test_steps_of_several_agents_need_a_choice(lake: Lake) -> None:
    log_run(lake, env_spec("count", lengths=(4,)), count=1, num_envs=1, steps=4)
    rows = lake.steps().to_arrow()
    index = rows.column_names.index(c.AGENT_ID)
    for agent in ("left", "right"):
        twin = rows.set_column(index, rows.schema.field(index), [[agent] * rows.num_rows])
        ids_ = rows.column_names.index(c.EPISODE_ID)
        twin = twin.set_column(ids_, rows.schema.field(ids_), [["run/two"] * rows.num_rows])
        put(lake, "steps", twin)
    row = find_episode(lake, "run/two")
    with pytest.raises(LakeError, match="several agents act: left, right"):
        read_trace(lake, row)
    assert len(read_trace(lake, row, agent_id="left")) == 4
    with pytest.raises(LakeError, match="by agent 'middle'"):
        read_trace(lake, row, agent_id="middle")


def test_numbers_are_called_as_python_gets_them() -> None:
    space = OBS_SPACES["dict"]
    space.seed(0)
    codec = codec_for(space)
    names = [name for name, _ in numbers_of("obs", space, codec.empty(2))]
    assert names[:2] == ["obs['inner'][0]", "obs['inner'][1][0]"]
    assert names[-1] == "obs['place'][1]"
    image = OBS_SPACES["image"]
    assert is_frame(image)
    assert list(numbers_of("obs", image, codec_for(image).empty(2))) == []

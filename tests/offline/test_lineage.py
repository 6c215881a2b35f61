"""Lineage over hand-written tables: what was consumed, through resumes that leave rows behind.

The run of `resumed`, of 10 rows a fragment:

    session 0   fragments 0..7      checkpoints 1 (2 consumed), 2 (4), 3 (8)
    session 1   from checkpoint 2: fragments 4..6, then killed; checkpoint 3 (6)
    session 2   from checkpoint 2 again: fragments 4..9; checkpoints 3 (8), 4 (10)
"""

from pathlib import Path
from typing import Any

import pytest

from offline.errors import LakeError
from offline.lake import Lake
from offline.lineage import (
    EpisodeRef,
    FragmentRef,
    checkpoints_of,
    config_sha256,
    of_checkpoint,
    of_unlisted,
)
from offline.sessions import CheckpointRow
from tests.offline.traces_kit import (
    at,
    checkpoint,
    consumed,
    empty_lake,
    put,
    resumed_from,
    run_row,
    steps,
)


@pytest.fixture
def resumed(tmp_path: Path) -> Lake:
    lake = empty_lake(tmp_path / "lake")
    parts = [(0, range(8)), (1, range(4, 7)), (2, range(4, 10))]
    for session, ids in parts:
        put(lake, "steps", steps("r", session, ids))
        put(lake, "consumption", consumed("r", session, ids, 100 * session))
    config = {"seed": 1, "env": {"id": "CartPole-v1"}}
    about = {"algo": "ppo", "env": "CartPole-v1", "seed": 1, "packages": '{"ray": "2.60.0"}'}
    put(
        lake,
        "runs",
        [
            run_row("r", 0, config=config, code="abc", **about),
            run_row("r", 0, status="stopped") | {"at": at(90)},
            run_row("r", 1, config=config | {"seed": 2}, resumed_from=resumed_from(0, 2), **about),
            run_row("r", 2, config=config, resumed_from=resumed_from(0, 2), **about),
        ],
    )
    rows = [checkpoint("r", 0, 1, 2, 1), checkpoint("r", 0, 2, 4, 3), checkpoint("r", 0, 3, 8, 7)]
    rows += [checkpoint("r", 1, 3, 6, 106)]
    rows += [checkpoint("r", 2, 3, 8, 208), checkpoint("r", 2, 4, 10, 210)]
    put(lake, "checkpoints", rows)
    return lake


def parts_of(found: Any) -> list[tuple[int, int, int]]:
    return [(part.session, part.fragments, part.rows) for part in found.sessions]


def names(uses: Any) -> list[tuple[int, int]]:
    return [(use.checkpoint.session, use.checkpoint.checkpoint_id) for use in uses]


def test_a_run_that_was_never_resumed_used_what_lies_below_its_counter(resumed: Lake) -> None:
    found = of_checkpoint(resumed, "r", 2)
    assert parts_of(found) == [(0, 4, 40)]
    (part,) = found.sessions
    assert (part.logged_rows, part.episodes, part.before) == (40, 3, 4)
    assert (part.code, part.status, part.env, part.algo) == ("abc", "stopped", "CartPole-v1", "ppo")
    assert part.packages == {"ray": "2.60.0"}
    assert found.checkpoint.table_versions == {"steps": 2}
    assert found.gaps == ()


def test_rows_beyond_the_checkpoint_that_was_resumed_are_no_part_of_it(resumed: Lake) -> None:
    found = of_checkpoint(resumed, "r", 4)
    # Fragments 4 to 7 of session 0, and all of session 1, were logged and led nowhere.
    assert parts_of(found) == [(2, 6, 60), (0, 4, 40)]
    assert [part.before for part in found.sessions] == [10, 4]
    assert (found.fragments, found.rows) == (10, 100)
    origin = found.sessions[0].resumed_from
    assert origin is not None
    assert (origin.session, origin.checkpoint_id) == (0, 2)
    assert origin.checkpoint is not None
    assert origin.checkpoint.sha256 == "0-2"


def test_checkpoints_of_one_number_are_told_apart_by_session(resumed: Lake) -> None:
    assert parts_of(of_checkpoint(resumed, "r", 3)) == [(2, 4, 40), (0, 4, 40)]  # the latest
    assert parts_of(of_checkpoint(resumed, "r", 3, session=1)) == [(1, 2, 20), (0, 4, 40)]
    assert parts_of(of_checkpoint(resumed, "r", 3, session=0)) == [(0, 8, 80)]


def test_configurations_that_are_equal_have_one_hash(resumed: Lake) -> None:
    latest, first = of_checkpoint(resumed, "r", 4).sessions
    assert latest.config_sha256 == first.config_sha256
    other = of_checkpoint(resumed, "r", 3, session=1).sessions[0].config_sha256
    assert other != first.config_sha256
    assert config_sha256({"a": 1, "b": 2}) == config_sha256({"b": 2, "a": 1})


def test_a_fragment_is_used_by_the_checkpoints_that_come_of_it(resumed: Lake) -> None:
    assert names(checkpoints_of(resumed, FragmentRef("r", 0, 0))) == [
        *((0, 1), (0, 2), (0, 3)),
        (1, 3),
        *((2, 3), (2, 4)),
    ]
    assert names(checkpoints_of(resumed, FragmentRef("r", 0, 3))) == [
        *((0, 2), (0, 3)),
        (1, 3),
        *((2, 3), (2, 4)),
    ]


def test_a_fragment_id_is_another_fragment_in_another_session(resumed: Lake) -> None:
    assert names(checkpoints_of(resumed, FragmentRef("r", 0, 4))) == [(0, 3)]
    assert names(checkpoints_of(resumed, FragmentRef("r", 1, 4))) == [(1, 3)]
    assert names(checkpoints_of(resumed, FragmentRef("r", 2, 4))) == [(2, 3), (2, 4)]
    assert names(checkpoints_of(resumed, FragmentRef("r", 2, 9))) == [(2, 4)]
    assert names(checkpoints_of(resumed, FragmentRef("r", 1, 6))) == []  # after its checkpoint


def test_an_episode_is_used_where_one_of_its_fragments_is(resumed: Lake) -> None:
    # Steps 30 to 44 of session 0: fragments 3 and 4, and only 3 was passed on.
    uses = checkpoints_of(resumed, EpisodeRef("r", "r/00000.0/0000002"))
    assert names(uses) == [(0, 2), (0, 3), (1, 3), (2, 3), (2, 4)]
    assert [len(use.fragments) for use in uses] == [1, 2, 1, 1, 1]
    assert uses[0].fragments == (FragmentRef("r", 0, 3),)


def test_fragments_that_were_sampled_and_not_used_trained_nothing(resumed: Lake) -> None:
    put(resumed, "steps", steps("r", 2, range(10, 11)))
    assert checkpoints_of(resumed, FragmentRef("r", 2, 10)) == ()
    assert of_checkpoint(resumed, "r", 4).sessions[0].logged_rows == 60


def test_a_fragment_that_nobody_knows_is_refused(resumed: Lake) -> None:
    with pytest.raises(LakeError, match="no fragment 77 of session 0 of run 'r'"):
        checkpoints_of(resumed, FragmentRef("r", 0, 77))
    with pytest.raises(LakeError, match="no steps of episode 'r/nope'"):
        checkpoints_of(resumed, EpisodeRef("r", "r/nope"))


def test_replayed_fragments_count_once(resumed: Lake) -> None:
    put(resumed, "consumption", consumed("r", 0, range(4), 50))
    assert parts_of(of_checkpoint(resumed, "r", 2)) == [(0, 4, 40)]


def test_a_run_that_began_from_anothers_checkpoint_goes_back_to_it(resumed: Lake) -> None:
    put(resumed, "steps", steps("fork", 0, range(4, 6)))
    put(resumed, "consumption", consumed("fork", 0, range(4, 6), 300))
    said = resumed_from(2, 3, run_id="r")
    put(resumed, "runs", [run_row("fork", 0, resumed_from=said)])
    put(resumed, "checkpoints", [checkpoint("fork", 0, 4, 6, 310)])
    found = of_checkpoint(resumed, "fork", 4)
    assert [(part.run_id, part.session, part.fragments) for part in found.sessions] == [
        ("fork", 0, 2),
        ("r", 2, 4),
        ("r", 0, 4),
    ]
    assert ("fork", 4) in [
        (use.checkpoint.run_id, use.checkpoint.checkpoint_id)
        for use in checkpoints_of(resumed, FragmentRef("r", 2, 7))
    ]
    assert ("fork", 4) not in [
        (use.checkpoint.run_id, use.checkpoint.checkpoint_id)
        for use in checkpoints_of(resumed, FragmentRef("r", 2, 8))
    ]


def test_what_the_lake_does_not_know_is_said(resumed: Lake) -> None:
    put(resumed, "runs", [run_row("r", 3, resumed_from=resumed_from(2, 9))])
    put(resumed, "consumption", consumed("r", 3, range(18, 20), 400))
    put(resumed, "checkpoints", [checkpoint("r", 3, 10, 20, 410)])
    found = of_checkpoint(resumed, "r", 10)
    assert parts_of(found) == [(3, 2, 20)]
    assert "checkpoint 9 of session 2 of run 'r', of which there is no row" in found.gaps[0]
    assert found.sessions[0].logged_rows == 0


def test_a_checkpoint_of_a_session_without_a_row_is_said(resumed: Lake) -> None:
    put(resumed, "checkpoints", [checkpoint("lost", 0, 1, 2, 500)])
    found = of_checkpoint(resumed, "lost", 1)
    assert "of session 0 of run 'lost' there is no row in runs" in found.gaps
    assert any("no fragment in table consumption" in gap for gap in found.gaps)


def test_resumes_that_go_in_circles_are_refused(resumed: Lake) -> None:
    put(resumed, "runs", [run_row("loop", 0, resumed_from=resumed_from(0, 1))])
    put(resumed, "checkpoints", [checkpoint("loop", 0, 1, 2, 500)])
    with pytest.raises(LakeError, match="resumed from a checkpoint of its own"):
        of_checkpoint(resumed, "loop", 1)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(resumed: Lake) -> None:
    with pytest.raises(LakeError, match=r"run 'r' has no checkpoint 7; it has .*4 \(session 2\)"):
        of_checkpoint(resumed, "r", 7)
    with pytest.raises(LakeError, match="has no checkpoint 4 by session 0"):
        of_checkpoint(resumed, "r", 4, session=0)
    with pytest.raises(LakeError, match="no checkpoints of run 'rr'; did you mean 'r'"):
        of_checkpoint(resumed, "rr", 1)


def test_a_checkpoint_saved_elsewhere_has_a_lineage_too(resumed: Lake) -> None:
    mine = CheckpointRow(run_id="r", session=2, checkpoint_id=5, fragments=9)
    assert parts_of(of_unlisted(resumed, mine)) == [(2, 5, 50), (0, 4, 40)]


def test_what_is_not_json_is_refused(resumed: Lake) -> None:
    put(resumed, "runs", [run_row("bad", 0) | {"resumed_from": "{"}])
    with pytest.raises(LakeError, match="column resumed_from holds '{', which is no JSON"):
        of_checkpoint(resumed, "r", 1)

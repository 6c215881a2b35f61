"""Validation from the lake on: rows that are of several spaces, or no rows of their space at all.

Legend: N rows, E episodes.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offline import schemas as s
from offline.errors import LakeError
from offline.lake import Lake
from offline.row_columns import BYTES, NUMBERS, Column, dense_rows
from offline.space_codec import SpaceCodec
from offline.spaces import spaces_of
from offline.trajectories import (
    EPISODE_KEY,
    DataSpec,
    Mask,
    Trajectories,
    episodes_of,
    read_rows,
    trajectories_of,
)
from offline.validation import (
    MAX_PLACES,
    NO_ROWS,
    NO_T,
    NOT_OF_SPACE,
    SEVERAL_SPACES,
    Needs,
    OnInvalid,
    Place,
    Problem,
    ValidationReport,
    place_of,
    refuse,
    settle,
    validate,
)
from rl_ops import columns as c
from rl_ops.tree import brief


@dataclass(frozen=True)
class Inspection:
    """Steps of a lake, and what is wrong with them.

    Attributes:
        report: on all rows that were asked for.
        trajectories: the episodes that can be in memory; None where there are none, or of
            several spaces. `report.keep` is about these.
    """

    report: ValidationReport
    trajectories: Trajectories | None


def inspect(lake: Lake, spec: DataSpec, needs: Needs | None = None) -> Inspection:
    """Read logged steps and look for every kind of problem, none of which is an error.

    Args:
        lake: where they are.
        spec: which; log-probabilities are read in any case.
        needs: what will be made of them; `Needs()` by default.

    Raises:
        LakeError: there is no such table, version or column, or a file cannot be read.
    """
    needs = needs or Needs()
    columns = tuple(dict.fromkeys((*spec.columns, c.LOGP)))
    rows, version = read_rows(lake, dataclasses.replace(spec, columns=columns))
    uri = lake.storage.uri
    keys = pc.unique(rows.column(s.SPACE)).to_pylist()
    if len(keys) != 1:
        problem = _several_spaces(rows, keys) if keys else Problem(NO_ROWS, "", 0, 0)
        return Inspection(_unusable(rows, problem, needs, version=version, uri=uri), None)
    codecs = spaces_of(lake.storage, keys[0])
    problems: list[Problem] = []
    try:
        found = trajectories_of(rows, *codecs, version=version, uri=uri)
    except LakeError:
        rest, problems = _readable(rows, *codecs)
        if not problems:
            raise
        found = trajectories_of(rest, *codecs, version=version, uri=uri)
    report = validate(found, needs)
    if problems:
        seen = tuple(one for one in report.problems if one.kind != NO_ROWS)
        report = dataclasses.replace(
            report,
            rows=rows.num_rows,
            episodes=episodes_of(rows)[1].num_rows,
            problems=(*problems, *seen),
        )
    return Inspection(report, found)


def load_valid(
    lake: Lake, spec: DataSpec, needs: Needs | None = None, *, on_invalid: OnInvalid
) -> tuple[Trajectories, ValidationReport]:
    """Logged steps in memory that are fit to learn from; see `settle` for the policy.

    Raises:
        LakeError: something is wrong under "fail", nothing is left, or nothing can be read.
    """
    inspected = inspect(lake, spec, needs)
    if inspected.trajectories is None:
        refuse(inspected.report, on_invalid=on_invalid)
        raise AssertionError("without trajectories no row is usable")
    found, _ = settle(inspected.trajectories, inspected.report, on_invalid=on_invalid)
    return found, inspected.report


def _unusable(
    rows: pa.Table, problem: Problem, needs: Needs, *, version: int, uri: str
) -> ValidationReport:
    return ValidationReport(
        uri=uri,
        version=version,
        rows=rows.num_rows,
        episodes=problem.episodes,
        needs=needs,
        problems=(problem,),
        usable_rows=0,
        usable_episodes=0,
        keep=np.zeros(0, np.bool_),
        moved=np.zeros(0, np.int64),
    )


def _several_spaces(rows: pa.Table, keys: list[Any]) -> Problem:
    """One place for each run and pair of spaces: the choice that there is."""
    counts = rows.group_by([c.RUN_ID, s.SPACE]).aggregate([([], "count_all")])
    each = sorted(counts.to_pylist(), key=lambda one: (-one["count_all"], str(one[c.RUN_ID])))
    places = tuple(
        Place(
            run_id=one[c.RUN_ID],
            session=None,
            episode_id=None,
            agent_id=None,
            t=None,
            found=f"{one['count_all']:,} rows of {one[s.SPACE]}, one of {len(keys)}",
        )
        for one in each[:MAX_PLACES]
    )
    return Problem(SEVERAL_SPACES, "", rows.num_rows, episodes_of(rows)[1].num_rows, places)


def _readable(
    rows: pa.Table, obs: SpaceCodec, action: SpaceCodec
) -> tuple[pa.Table, list[Problem]]:
    """The rows of episodes that can be decoded, and what is wrong with the others."""
    episode, names = episodes_of(rows)
    is_bad = np.zeros(names.num_rows, np.bool_)
    problems = []
    for kind, column, wrong, found in _undecodable(rows, obs, action):
        if not wrong.any():
            continue
        is_bad[episode[wrong]] = True
        first = pa.array(np.flatnonzero(wrong)[:MAX_PLACES])
        named = rows.select([*EPISODE_KEY, c.T]).take(first).to_pylist()
        places = tuple(place_of(one, one[c.T], found) for one in named)
        episodes = len(np.unique(episode[wrong]))
        problems.append(Problem(kind, column, int(wrong.sum()), episodes, places))
    return rows.filter(pa.array(~is_bad[episode])), problems


def _undecodable(
    rows: pa.Table, obs: SpaceCodec, action: SpaceCodec
) -> Iterator[tuple[str, str, Mask, str]]:
    """Kind, column, [N] which rows, and what is there."""
    t = rows.column(c.T)
    wrong = pc.or_kleene(t.is_null(), pc.less(t, 0)).fill_null(True).to_numpy()
    yield NO_T, c.T, wrong.astype(np.bool_), "null, or below 0"
    for column, codec in ((c.OBS, obs), (c.ACTION, action), (c.FINAL_OBS, obs)):
        pair = rows.column(column), rows.column(f"{column}_bytes")
        wrong = undecodable_rows(codec, *pair, optional=column == c.FINAL_OBS)
        yield NOT_OF_SPACE, column, wrong, f"it is no item of {brief(codec.space)}"


def undecodable_rows(
    codec: SpaceCodec, values: pa.ChunkedArray, bytes_: pa.ChunkedArray, *, optional: bool
) -> Mask:
    """[N] rows that `codec.tree` refuses, or would read as zeros.

    Args:
        codec: of the space that the rows should be of.
        values: the column of numbers.
        bytes_: the column of bytes.
        optional: whether a row may be null, in both.
    """
    wrong = np.zeros(len(values), np.bool_)
    sized = (values, codec.num_values, False), (bytes_, codec.num_bytes, True)
    expected = [_is_valid(column) for column, size, _ in sized if size]
    is_there = np.logical_or.reduce(expected) if optional else np.ones(len(wrong), np.bool_)
    for column, size, is_bytes in sized:
        valid = _is_valid(column)
        if not size:
            wrong |= valid
            continue
        lengths = pc.binary_length(column) if is_bytes else pc.list_value_length(column)
        fits = valid & (lengths.fill_null(-1).to_numpy() == size)
        if not is_bytes:
            fits &= ~_has_nulls(column)
        wrong |= is_there & ~fits
        candidates = np.flatnonzero(fits)
        wrong[candidates[_inexact(codec, column.take(pa.array(candidates)), is_bytes)]] = True
    return wrong


def _is_valid(column: pa.ChunkedArray) -> Mask:
    valid: Mask = column.is_valid().to_numpy().astype(np.bool_)
    return valid


def _has_nulls(lists: pa.ChunkedArray) -> Mask:
    """[N] whether a list has a null inside."""
    array = lists.combine_chunks()
    found = np.zeros(len(array), np.bool_)
    inside = pc.list_parent_indices(array).filter(pc.list_flatten(array).is_null())
    found[inside.to_numpy()] = True
    return found


def _inexact(codec: SpaceCodec, column: Column, is_bytes: bool) -> Mask:
    """[B] rows with a number that a leaf's dtype does not hold; bytes hold what they hold."""
    size = codec.num_bytes if is_bytes else codec.num_values
    dense = dense_rows(column, BYTES if is_bytes else NUMBERS, size, "")
    wrong = np.zeros(len(column), np.bool_)
    if dense is None or is_bytes:
        return wrong
    data = dense.data
    for leaf in codec.leaves:
        if leaf.is_bytes:
            continue
        part = data[:, leaf.start : leaf.start + leaf.size]
        with np.errstate(invalid="ignore", over="ignore"):
            cast = part.astype(leaf.dtype)
        is_nan = np.isnan(part) & (leaf.dtype.kind == "f")
        wrong |= ((cast != part) & ~is_nan).any(axis=1)
    return wrong

"""Logged steps that do not fit in memory, as minibatches: read file by file, shuffled locally."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from offline.lake import Lake
from offline.module_obs import module_obs
from offline.step_stream import StepFiles
from offline.trajectories import Trajectories
from offline.validation import Needs, OnInvalid, cleaned, refuse, validate
from pipelines.config import DataConfig, OffPolicyConfig
from pipelines.config_errors import ConfigError, Problem
from pipelines.offline_data import DataMoments, DataTask, drawn_rows
from rl_ops import columns as c
from rl_ops.batch import to_batch
from rl_ops.learner import World
from rl_ops.policy import PolicySpec
from rl_ops.spaces import codec_for
from rl_ops.stream_data import Block, Place, StreamData

log = logging.getLogger(__name__)

FILE = "file"
"""Column of a block: which of a pass's files it is of."""

ReadFiles = Callable[["FileReader", Sequence[int]], Iterator[pa.Table]]
"""Reads files in the order given, on Ray or in this process."""


@dataclass(frozen=True, eq=False)
class FileReader:
    """One file of logged steps → tables of what a learner reads; travels to who reads.

    Attributes:
        files: of the data.
        config: of the run.
        policy: whose connectors and spaces the rows go through.
        reads: columns of a minibatch beside obs.
        moments: of all the data.
        on_invalid: what is done with rows that are not as they should be.
    """

    files: StepFiles
    config: OffPolicyConfig
    policy: PolicySpec
    reads: tuple[str, ...]
    moments: DataMoments
    on_invalid: OnInvalid = "skip"

    def codecs(self) -> dict[str, Any]:
        """Column → codec, None for plain numbers."""
        obs = codec_for(self.policy.obs_connectors.output_space)
        found: dict[str, Any] = {c.OBS: obs, **dict.fromkeys(self.reads)}
        if c.BOOTSTRAP_OBS in self.reads:
            found[c.BOOTSTRAP_OBS] = obs
        if c.ACTION in self.reads:
            found[c.ACTION] = codec_for(self.policy.action_connectors.input_space)
        return found

    def tables(self, file: int, *, place: int) -> Iterator[pa.Table]:
        """The rows of a file, some whole fragments at a time.

        Args:
            file: which one of all.
            place: which one of the pass, noted in column `FILE`.
        """
        codecs = self.codecs()
        for logged in self.files.trajectories(file):
            data = valid_rows(logged, self.on_invalid)
            if not data.rows:
                continue
            obs = module_obs(data, self.policy.obs_connectors)
            drawn = drawn_rows(
                data, self.config, self.policy, self.reads, obs=obs, moments=self.moments
            )
            if not len(drawn.obs_row):
                continue
            trees = {c.OBS: obs[drawn.obs_row], **drawn.columns}
            if drawn.bootstrap_row is not None and c.BOOTSTRAP_OBS in self.reads:
                trees[c.BOOTSTRAP_OBS] = obs[drawn.bootstrap_row]
            columns = {
                name: pa.array(tree) if codecs[name] is None else codecs[name].encode(tree)
                for name, tree in trees.items()
            }
            columns[FILE] = pa.array(np.full(len(drawn.obs_row), place, np.int32))
            yield pa.table(columns)


@dataclass(frozen=True)
class StreamBlocks:
    """The blocks of one rank's passes, each in an order of files of its own.

    Attributes:
        reader: of files.
        read: who reads them.
        seed: of the orders.
        world: of several ranks each reads every size-th file of a pass.
    """

    reader: FileReader
    read: ReadFiles
    seed: int
    world: World

    def __call__(self, place: Place) -> Iterator[Block]:
        """See `rl_ops.stream_data.Blocks`."""
        order = np.random.default_rng((self.seed, place.epoch)).permutation(
            len(self.reader.files.files)
        )
        mine = order[self.world.rank :: self.world.size]
        codecs = self.reader.codecs()
        for table in self.read(self.reader, mine[place.file :].tolist()):
            batch = to_batch([table], codecs, device=torch.device("cpu"))
            numbers = {n: _narrow(getattr(batch, n)) for n, x in codecs.items() if x is None}
            file = place.file + int(table.column(FILE)[0].as_py())
            yield Block(batch.with_columns(**numbers), file)


def _narrow(column: torch.Tensor) -> torch.Tensor:
    return column.float() if column.dtype == torch.float64 else column


def read_here(reader: FileReader, files: Sequence[int]) -> Iterator[pa.Table]:
    """In this process."""
    for place, file in enumerate(files):
        yield from reader.tables(file, place=place)


def is_too_large(task: DataTask, data: DataConfig, policy: PolicySpec, free_bytes: int) -> bool:
    """Whether rows are to be streamed: because the configuration says so, or they do not fit."""
    if data.load != "auto":
        return data.load == "stream"
    spec = task.spec
    selection = Lake(task.storage).steps(version=spec.version, where=spec.where)
    rows = selection.count()
    shape, kind = policy.obs_connectors.output_space.shape, policy.obs_connectors.output_space.dtype
    assert shape is not None  # a network is fed a Box
    # Once read as doubles, once as the module's observations, and what lies beside them.
    needs = rows * (int(np.prod(shape)) * (8 + 2 * np.dtype(kind).itemsize) + 200)
    too_large = bool(needs > data.max_memory_frac * free_bytes)
    log.info(
        "offline: %d rows need about %.1f GB and %.1f GB are free: %s (offline.load=auto, "
        "max_memory_frac=%g)",
        rows,
        needs / 1e9,
        free_bytes / 1e9,
        "they are streamed" if too_large else "they are loaded at once",
        data.max_memory_frac,
    )
    return too_large


def stream_rows(
    task: DataTask,
    config: OffPolicyConfig,
    policy: PolicySpec,
    reads: tuple[str, ...],
    world: World,
    *,
    read: ReadFiles,
) -> tuple[StreamData, DataMoments]:
    """The rows of a task as a stream, and the statistics of all of them.

    Args:
        task: which rows.
        config: of the run.
        policy: whose connectors and spaces they go through.
        reads: columns of a minibatch beside obs.
        world: of the learner.
        read: who reads files.

    Raises:
        LakeError: there are no such rows, or they cannot be read.
        ConfigError: there are fewer files than ranks.
    """
    assert config.offline is not None  # or there would be no task
    files = StepFiles.of(Lake(task.storage), task.spec)
    if len(files.files) < world.size:
        what = f"{len(files.files)} data files for {world.size} learner ranks that stream"
        raise ConfigError(Problem("offline.load", what, "set it to memory, or fewer ranks"))
    moments = DataMoments.new(config, policy)
    if moments.obs_moments is not None or moments.reward_moments is not None:
        _learn_moments(moments, files, config, policy, task.on_invalid)
    reader = FileReader(files, config, policy, reads, moments, task.on_invalid)
    stream = StreamData(
        StreamBlocks(reader, read, config.seed, world),
        window_rows=config.offline.shuffle_rows,
        seed=config.seed + 7919 * world.rank,
        device=world.device,
    )
    log.info("offline: streaming %d files, version %d of steps", len(files.files), files.version)
    return stream, moments


def valid_rows(data: Trajectories, on_invalid: OnInvalid) -> Trajectories:
    """Rows of a file that are as they should be; doubles in different files are not seen.

    Raises:
        LakeError: there are others under "fail".
    """
    report = validate(data, Needs(contiguous=False))
    if on_invalid == "fail":
        refuse(report, on_invalid=on_invalid)
    return data if report.is_clean() else cleaned(data, report)


def _learn_moments(
    moments: DataMoments,
    files: StepFiles,
    config: OffPolicyConfig,
    policy: PolicySpec,
    on_invalid: OnInvalid,
) -> None:
    """One pass over all rows."""
    for file in range(len(files.files)):
        for logged in files.trajectories(file):
            data = valid_rows(logged, on_invalid)
            if not data.rows:
                continue
            moments.update(data, module_obs(data, policy.obs_connectors), gamma=config.gamma)

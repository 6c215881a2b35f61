"""What a batch costs in a lake that grows: `python -m benchmarks.commit_latency`."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.figures import percentile
from benchmarks.tables import number_text, plain_table
from offline import schemas as s
from offline.parts import write_parts
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter
from rl_ops import columns as c

HEADER = ("batches", "batch ms: median", "mean", "p90", "longest", "CPU ms: mean")
RUN = "CartPole-v1_ppo_20261122"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=5000, help="of one table")
    parser.add_argument("--training-batches", type=int, default=1000, help="of three tables")
    parser.add_argument("--storage", type=Path, help="where; a temporary folder by default")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.storage) as folder:
        report_parts(Storage.at(f"{folder}/parts"))
        metrics = {s.METRICS.name: metric_rows(8)}
        report(Storage.at(f"{folder}/one"), args.batches, metrics)
        rows = 2048
        training = {
            s.STEPS.name: cartpole_rows(rows),
            s.EPISODES.name: filled(s.EPISODES, 10),
            s.CONSUMPTION.name: filled(s.CONSUMPTION, 1),
        }
        report(Storage.at(f"{folder}/three"), args.training_batches, training)
    return 0


def report_parts(storage: Storage) -> None:
    """How fast rows become a data file, checksum and fsync included."""
    for rows in (2048, 20_480, 204_800):
        table = cartpole_rows(rows)
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            (part,) = write_parts(storage, s.STEPS, table, stem="speed")
            seconds.append(time.perf_counter() - start)
        median = percentile(seconds, 0.5)
        print(
            f"a data file of {rows:,} CartPole rows: {1000 * median:.1f} ms, "
            f"{rows / median / 1e6:.2f} M rows/s, {part.size / rows:.1f} bytes a row"
        )


def report(storage: Storage, batches: int, tables: Mapping[str, pa.Table]) -> None:
    """Write batches in a loop and print what the first and the last ones took."""
    create_tables(storage)
    seconds = []
    with LakeWriter(storage, f"{RUN}/0") as writer:
        for number in range(batches):
            start, cpu = time.perf_counter(), time.process_time()
            written = writer.write(tables, fragments=[number])
            seconds.append((time.perf_counter() - start, time.process_time() - cpu))
    print(f"\nbatches of {', '.join(f'{n:,} {t}' for t, n in written.rows.items())} rows:")
    hundreds = [0, *range(batches // 5, batches, batches // 5), batches - 100]
    print(plain_table(HEADER, [_row(first, seconds) for first in sorted(set(hundreds))]))


def _row(first: int, seconds: Sequence[tuple[float, float]]) -> list[str]:
    some = seconds[first : first + 100]
    ms, cpu_ms = ([1000 * pair[i] for pair in some] for i in (0, 1))
    means = [sum(values) / len(values) for values in (ms, cpu_ms)]
    figures = (percentile(ms, 0.5), means[0], percentile(ms, 0.9), max(ms), means[1])
    return [f"{first:,} to {first + 100:,}", *(number_text(value, 1) for value in figures)]


def metric_rows(rows: int) -> pa.Table:
    table = filled(s.METRICS, rows)
    position = table.column_names.index(s.KEY)
    return table.set_column(position, s.KEY, pa.array([f"learner/loss_{i}" for i in range(rows)]))


def filled(table: s.TableSchema, rows: int) -> pa.Table:
    """Rows of one run with a value in each column."""
    columns = {field.name: _values(field.type, rows) for field in table.schema}
    columns[c.RUN_ID] = pa.array([RUN] * rows)
    return pa.table(columns, schema=table.schema)


def _values(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array([f"{RUN}-0-0-{row}" for row in range(rows)])
    if pa.types.is_list(kind) or pa.types.is_binary(kind):
        return pa.nulls(rows, kind)
    if pa.types.is_boolean(kind):
        return pa.array([False] * rows)
    if pa.types.is_timestamp(kind):
        return pa.array(time.time_ns() // 1000 + np.arange(rows), kind)
    return pa.array(np.arange(rows), pa.int64()).cast(kind)


def cartpole_rows(rows: int, *, envs: int = 32) -> pa.Table:
    """Steps of CartPole as a trained policy takes them, env-major."""
    obs_TBD, is_last_TB = _cartpole(rows // envs, envs)
    steps = obs_TBD.shape[0]
    is_last = is_last_TB.T.reshape(rows)
    index = np.arange(rows)
    episodes: list[int] = (np.cumsum(is_last) - is_last).tolist()
    rng = np.random.default_rng(0)
    columns = {field.name: pa.nulls(rows, field.type) for field in s.STEPS.schema}
    columns |= {
        c.RUN_ID: pa.array([RUN] * rows),
        s.SESSION: pa.array(np.zeros(rows, np.int32)),
        c.FRAGMENT_ID: pa.array(index // 2048),
        c.WORKER_ID: pa.array(np.zeros(rows, np.int32)),
        c.ENV_ID: pa.array((index // steps).astype(np.int32)),
        c.AGENT_ID: pa.array(["agent"] * rows),
        c.MODULE_ID: pa.array(["default"] * rows),
        c.EPISODE_ID: pa.array([f"{RUN}-0-0-{number}" for number in episodes]),
        c.T: pa.array((index % 500).astype(np.int32)),
        s.SPACE: pa.array(["0123456789ab"] * rows),
        c.OBS: _lists(obs_TBD.transpose(1, 0, 2).reshape(rows, -1)),
        c.ACTION: _lists(rng.integers(0, 2, (rows, 1))),
        c.REWARD: pa.array(np.ones(rows)),
        **{k: pa.array(is_last) for k in (c.TERMINATED, c.IS_LAST)},
        **{k: pa.array(np.zeros(rows, bool)) for k in (c.TRUNCATED, c.ABORTED)},
        c.LOGP: pa.array(rng.normal(-0.6, 0.1, rows).astype(np.float32)),
        c.VALUE: pa.array(rng.normal(20, 5, rows).astype(np.float32)),
        c.POLICY_VERSION: pa.array(index // 2048),
        c.SAMPLED_AT: pa.array(time.time_ns() // 1000 + index // 2048, pa.timestamp("us", "UTC")),
    }
    return pa.table(columns, schema=s.STEPS.schema)


def _lists(values_BD: npt.NDArray[np.generic]) -> pa.Array:
    rows, width = values_BD.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    values = pa.array(values_BD.reshape(-1).astype(np.float64))
    return pa.ListArray.from_arrays(offsets, values, type=s.VALUES)


def _cartpole(steps: int, envs: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    import gymnasium

    kind = "vector_entry_point"
    env = gymnasium.make_vec("CartPole-v1", num_envs=envs, vectorization_mode=kind)
    obs_BD, _ = env.reset(seed=1)
    obs_TBD = np.zeros((steps, *obs_BD.shape), np.float32)
    is_last_TB = np.zeros((steps, envs), bool)
    for step in range(steps):
        obs_TBD[step] = obs_BD
        action_B = (obs_BD[:, 2] + obs_BD[:, 3] > 0).astype(np.int64)
        obs_BD, _, terminated_B, truncated_B, _ = env.step(action_B)
        is_last_TB[step] = terminated_B | truncated_B
    return obs_TBD, is_last_TB


if __name__ == "__main__":
    raise SystemExit(main())

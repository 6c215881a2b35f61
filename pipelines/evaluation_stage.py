"""Evaluation as a dataflow of its own on Ray: shares of the episodes, pinned to one version."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipelines.evaluation import Evaluation, EvaluationTask, evaluate_policy
from pipelines.ray_session import tune_ray_data
from rl_ops import columns as c
from rl_ops.policy import Policy, Weights


def evaluate_on_ray(task: EvaluationTask, weights: Weights, *, num_workers: int) -> Evaluation:
    """Run a task's episodes as Ray Data tasks, side by side.

    They reserve no CPU: a run whose rollout workers hold every one must still be evaluated.
    """
    tune_ray_data()
    shares = task.split(num_workers)
    blocks = [
        pa.table({"episodes": [share.episodes], "seed": [share.seed], "share": [i]})
        for i, share in enumerate(shares)
    ]
    dataset = ray.data.from_blocks(blocks).map_batches(
        _evaluate_share,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"task": task, "weights": [ray.put(weights)]},
        num_cpus=0,
    )
    tables = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    episodes = pa.concat_tables(tables).sort_by([("share", "ascending"), (c.T, "ascending")])
    return Evaluation(
        tuple(episodes.column(c.EPISODE_RETURN).to_pylist()),
        tuple(episodes.column(c.EPISODE_LENGTH).to_pylist()),
    )


def _evaluate_share(share: pa.Table, *, task: EvaluationTask, weights: list[Any]) -> pa.Table:
    row = share.to_pylist()[0]
    policy = Policy(task.policy, ray.get(weights[0]))
    result = evaluate_policy(
        policy,
        task.env,
        episodes=row["episodes"],
        seed=row["seed"],
        num_envs=task.num_envs,
        explore=task.explore,
    )
    return pa.table(
        {
            "share": [row["share"]] * len(result.returns),
            c.T: list(range(len(result.returns))),
            c.EPISODE_RETURN: pa.array(result.returns, pa.float64()),
            c.EPISODE_LENGTH: pa.array(result.lengths, pa.int64()),
        }
    )


class BackgroundEvaluation:
    """Evaluations beside training, one after the other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._pending: deque[tuple[int, Future[Evaluation]]] = deque()

    def start(self, task: EvaluationTask, weights: Weights, *, version: int, workers: int) -> None:
        """Evaluate `weights` in the background, after those started before."""
        future = self._pool.submit(evaluate_on_ray, task, weights, num_workers=workers)
        self._pending.append((version, future))

    def finished(self, *, wait: bool) -> tuple[int, Evaluation] | None:
        """(version, evaluation) of the newest that is done; asked to wait, of the newest."""
        done = None
        while self._pending and (wait or self._pending[0][1].done()):
            version, future = self._pending.popleft()
            done = version, future.result()
        return done

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

"""Evaluations of a run: when they are due, in a dataflow of their own, noted and filmed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.backend import Backend
from pipelines.evaluation import Evaluation, EvaluationTask, record_videos
from pipelines.result import Result
from rl_ops.policy import Policy

if TYPE_CHECKING:
    from pipelines.dataflow import Plan
    from pipelines.tracing import RunLog


class RunEvaluations:
    """Evaluates versions of a run's policy.

    Args:
        plan: of the run.
        backend: which has the weights.
        log: of the run; None where nothing is logged.
        folder: of the run's films, one for each version.
        tell: figures → those that callbacks add.
    """

    def __init__(
        self,
        plan: "Plan",
        backend: Backend,
        *,
        log: "RunLog | None",
        folder: Path,
        tell: Callable[[dict[str, Any]], dict[str, float]],
    ) -> None:
        self._plan, self._backend, self._log = plan, backend, log
        self._folder, self._tell = folder, tell
        self._config = plan.config.evaluation

    def of(
        self, version: int, *, num_episodes: int | None = None, seed: int | None = None
    ) -> Result:
        """Evaluate the newest version, and wait for it.

        Args:
            version: its number; the run holds still at it.
            num_episodes: whole episodes; those of the configuration when None.
            seed: of environments and sampling; one per version when None.
        """
        task = self._task(version, num_episodes, seed)
        evaluation = self._backend.evaluate(task)
        return Result(self._noted(evaluation, task))

    def at(self, iteration: int, version: int, *, ended: bool) -> dict[str, Any]:
        """Figures of the evaluation due at an iteration, or of one that ended meanwhile.

        Args:
            iteration: of which the result is.
            version: the newest; where an evaluation is due the run holds still at it.
            ended: whether it is the run's last.
        """
        period = self._config.period_iterations
        due = period is not None and iteration % period == 0
        found: dict[str, Any] = {}
        if due:
            self._film(version)
        if self._config.parallel:
            found = self._beside(version, due=due, ended=ended)
        elif due:
            found = self.of(version)
        return {f"evaluation/{key}": value for key, value in found.items()}

    def _beside(self, version: int, *, due: bool, ended: bool) -> dict[str, Any]:
        """While training goes on: start what is due, and take what is done."""
        done = self._backend.finished_evaluation(wait=due or ended)
        if due:
            self._backend.start_evaluation(self._task(version), version=version)
        if due and ended:
            done = self._backend.finished_evaluation(wait=True)
        if done is None:
            return {}
        of, evaluation = done
        return self._noted(evaluation, self._task(of))

    def _noted(self, evaluation: Evaluation, task: EvaluationTask) -> dict[str, Any]:
        """Its figures, with those that callbacks add; it is in the log."""
        if self._log is not None:
            self._log.evaluation(evaluation, task)
        found = {**evaluation.figures(), "policy_version": task.version}
        return found | self._tell(found)

    def _film(self, version: int) -> None:
        """Film a version, if that is wanted and it was not yet."""
        folder = self._folder / str(version)
        if self._config.videos and not folder.exists():
            task = self._task(version)
            record_videos(
                Policy(task.policy, self._backend.weights()),
                task.env,
                folder=folder,
                episodes=self._config.videos,
                seed=task.seed,
                explore=task.explore,
            )

    def _task(
        self, version: int, episodes: int | None = None, seed: int | None = None
    ) -> EvaluationTask:
        return EvaluationTask(
            policy=self._plan.policy,
            env=self._plan.rollout.env,
            episodes=self._config.episodes if episodes is None else episodes,
            # Apart from the training environments' seeds, which come from a SeedSequence.
            seed=1_000_003 * (self._plan.config.seed + 1) + version if seed is None else seed,
            version=version,
            num_envs=self._config.num_envs,
            explore=self._config.explore,
        )

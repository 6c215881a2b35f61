"""Callbacks of tests, named by path as a user's are."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pipelines.callbacks import Callbacks, StopTraining
from rl_ops import columns as c


class Recorder(Callbacks):
    """Notes every moment of the driver in the order in which it was told."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def on_start(self, pipeline):
        self.told.append(("start", pipeline.run_id))

    def on_result(self, pipeline, result):
        self.told.append(("result", result["training_iteration"], "evaluation/episodes" in result))
        return {"twice": 2 * result["training_iteration"]}

    def on_evaluation(self, pipeline, evaluation):
        self.told.append(("evaluation", evaluation["policy_version"], evaluation["episodes"]))
        return {"best": evaluation["episode_return_max"]}

    def on_checkpoint(self, pipeline, path):
        self.told.append(("checkpoint", path.name, (path / "manifest.json").is_file()))

    def on_failure(self, pipeline, failure):
        self.told.append(("failure", failure["kind"], failure["message"]))

    def on_end(self, pipeline, status, message):
        self.told.append(("end", status, message))


class Counter(Callbacks):
    """Figures from rollout workers: of each episode, and of each fragment."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.fragments = 0

    def on_episode_end(self, episode):
        assert episode.steps.num_rows <= episode.length
        assert episode.steps.column(c.EPISODE_ID).unique().to_pylist() == [episode.episode_id]
        return {"scaled_return": self.factor * episode.return_, "length": episode.length}

    def on_fragment(self, fragment):
        self.fragments += 1
        return {"fragments": self.fragments, "rows": fragment.num_rows}


class StopAt(Callbacks):
    """Ends the run at an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_result(self, pipeline, result):
        if result["training_iteration"] >= self.iteration:
            raise StopTraining("enough")


class Broken(Callbacks):
    """Raises in the moment that it is told, or returns what is no figure."""

    def __init__(self, moment: str, gives: Any = None) -> None:
        self.moment, self.gives = moment, gives

    def _do(self, moment: str) -> Mapping[str, float] | None:
        if moment != self.moment:
            return None
        if self.gives is not None:
            return self.gives
        raise KeyError("mine")

    def on_episode_end(self, episode):
        return self._do("on_episode_end")

    def on_start(self, pipeline):
        return self._do("on_start")

    def on_result(self, pipeline, result):
        return self._do("on_result")

    def on_checkpoint(self, pipeline, path):
        return self._do("on_checkpoint")

    def on_end(self, pipeline, status, message):
        return self._do("on_end")


class Late(Callbacks):
    """Asks for the end where that cannot be."""

    def on_checkpoint(self, pipeline, path):
        raise StopTraining


class NotOne:
    """No callbacks at all."""

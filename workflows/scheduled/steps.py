"""What a step of a workflow can do: its settings, its command, and what it gives to others."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Reference = Annotated[str, Field(pattern=r"^\$\{[^{}]+\}$")]
"""Stands for a value that is known when the step begins."""
Count = Annotated[int, Field(ge=1)] | Reference
Version = Annotated[int, Field(ge=0)] | Reference
Number = float | Reference

ANY: Final = "*"
"""Among outputs: further ones, of names that only the step knows."""


class Step(BaseModel):
    """What all steps have.

    Attributes:
        outputs: what later steps can refer to, by name.
        is_debug: whether it has training in one process, without Ray.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    outputs: ClassVar[tuple[str, ...]] = ()
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(default=None, strict=False)
    """After so long an attempt is ended, and has failed; the schedule's by default."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """Further attempts after one that failed; the schedule's by default."""
    always: bool = False
    """Also after a gate that did not let a policy pass."""

    def command(self, at: "At") -> list[str]:
        """Words after `millrace`, or a command of its own."""
        raise NotImplementedError

    def found(self, printed: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs from the JSON that the command printed last."""
        return {name: printed.get(name) for name in self.outputs}


class At(BaseModel):
    """Where and when a step is.

    Attributes:
        run_id: of what it trains or collects: the same at each attempt.
        storage: folder of runs.
        lake: address whose folder `lake` is the lake; None for the storage.
        workflow, logical_time: of the run; the time in ISO 8601.
        resume: checkpoint from which a training that was cut short goes on.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    storage: str
    lake: str | None
    workflow: str
    logical_time: str
    resume: str | None = None

    def of_lake(self) -> list[str]:
        """--storage of commands that read the lake."""
        return ["--storage", self.lake or self.storage]


class Collect(Step):
    """Log episodes of a policy, or of random actions."""

    do: Literal["collect"] = "collect"
    checkpoint: str | None = None
    random: bool = False
    env: str | None = None
    rows: Count | None = None
    episodes: Count | None = None
    greedy: bool = False
    epsilon: Number | None = None
    level: str | None = None
    seed: int | Reference = 0
    num_envs: Count | None = None

    outputs: ClassVar = (
        *("run_id", "rows", "episodes", "return_mean", "return_std", "steps_version", "lake"),
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> "Collect":
        if self.random == (self.checkpoint is not None):
            raise ValueError("give either checkpoint, or random: true with env")
        if self.random and self.env is None:
            raise ValueError("random: true needs env")
        if (self.rows is None) == (self.episodes is None):
            raise ValueError("give either rows or episodes")
        return self

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["collect", *([self.checkpoint] if self.checkpoint else ["--random"])]
        words += _options(self, "env", "rows", "episodes", "epsilon", "level", "seed", "num_envs")
        words += ["--greedy"] if self.greedy else []
        lake = [] if at.lake is None else ["--lake", f"{at.lake}/lake"]
        return [*words, "--run", at.run_id, "--storage", at.storage, *lake, "--json"]


class Validate(Step):
    """Check that logged steps are fit to learn from; what is not fails."""

    do: Literal["validate"] = "validate"
    where: tuple[str, ...] = Field(default=(), strict=False)
    version: Version | None = None
    needs: tuple[Literal["logp", "transitions"], ...] = Field(default=(), strict=False)
    on_invalid: Literal["fail", "skip"] = "fail"

    outputs: ClassVar = ("version", "rows", "episodes", "usable_rows", "usable_episodes")

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["validate", *_repeated("where", self.where), *_repeated("needs", self.needs)]
        words += _options(self, "version", "on_invalid")
        return [*words, *at.of_lake(), "--json"]


class Train(Step):
    """Train, from rollouts or from logged rows; a training that was cut short goes on."""

    do: Literal["train"] = "train"
    algo: str | None = None
    file: str | None = None
    env: str | None = None
    set: dict[str, Any] = Field(default={})
    stop: dict[str, Any] | None = None
    seed: int | Reference | None = None
    resume: str | None = None
    """A checkpoint to begin from, under a run id of this step's own."""
    checkpoint_freq: Count | None = None
    """Iterations between two checkpoints, from which an attempt that was cut short goes on."""
    debug: bool = False
    """In one process, without Ray."""

    outputs: ClassVar = (
        *("run_id", "checkpoint", "folder", "stopped_by", "env_steps", "grad_steps"),
        *("training_iteration", "episode_return_mean", "steps_version", "time_s"),
    )

    @model_validator(mode="after")
    def _says_what(self) -> "Train":
        if self.algo is None and self.file is None and self.resume is None:
            raise ValueError("say what: algo, file or resume")
        return self

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        import json

        begin = at.resume or self.resume
        words = ["train", *([self.algo] if self.algo else [])]
        words += ["file", self.file] if self.file else []
        words += _options(self, "env", "seed", "checkpoint_freq")
        for key, value in self.set.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += ["--set", f"{key}={text}"]
        if at.lake is not None:
            words += ["--set", f"trace.lake={at.lake}/lake"]
        words += [] if self.stop is None else ["--stop", json.dumps(self.stop)]
        words += ["--debug"] if self.debug else []
        words += [] if begin is None else ["--resume", begin]
        return [*words, "--name", at.run_id, "--storage", at.storage, "--json"]

    def found(self, printed: Mapping[str, Any]) -> dict[str, Any]:
        """See `Step`."""
        summary = printed.get("summary", {})
        result = summary.get("result") or {}
        outputs = {**result, **summary, "steps_version": result.get("lake/steps_version")}
        return {name: outputs.get(name) for name in self.outputs}


class Evaluate(Step):
    """Run a checkpoint's policy for whole episodes."""

    do: Literal["evaluate"] = "evaluate"
    checkpoint: str
    episodes: Count = 10
    seed: int | Reference = 0
    explore: bool = False
    num_envs: Count | None = None
    video_dir: str | None = None

    outputs: ClassVar = (
        *("checkpoint", "episodes", "episode_return_mean", "episode_return_std"),
        *("episode_return_min", "episode_return_max", "episode_length_mean", "logged"),
    )

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["evaluate", self.checkpoint, *(["--explore"] if self.explore else [])]
        words += _options(self, "episodes", "seed", "num_envs", "video_dir")
        # One evaluation in the lake, however often the step is begun.
        return [*words, "--id", at.run_id, "--storage", at.storage, "--json"]


class Ope(Step):
    """Estimate from logged episodes what a checkpoint would return."""

    do: Literal["ope"] = "ope"
    checkpoint: str
    where: tuple[str, ...] = Field(default=(), strict=False)
    version: Version | None = None
    estimators: str = "wdr"
    level: Number = 0.95
    seed: int | Reference = 0

    outputs: ClassVar = ("checkpoint", "ope_id", "estimate", "low", "high", "ess", "behavior")

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["ope", self.checkpoint, *_repeated("where", self.where)]
        words += _options(self, "version", "estimators", "level", "seed")
        return [*words, *at.of_lake(), "--json"]

    def found(self, printed: Mapping[str, Any]) -> dict[str, Any]:
        """See `Step`; figures are those of the first estimator."""
        estimates = printed.get("estimates") or [{}]
        behavior = (printed.get("behavior") or {}).get("value")
        first = {**estimates[0], "estimate": estimates[0].get("value"), "behavior": behavior}
        return {name: {**printed, **first}.get(name) for name in self.outputs}


class Gate(Step):
    """Let a checkpoint pass if it is better than the model's champion, with an interval."""

    do: Literal["gate"] = "gate"
    model: str
    checkpoint: str
    alias: str = "champion"
    by: Literal["simulation", "ope"] = "simulation"
    episodes: Count = 50
    seed: int | Reference = 0
    level: Number = 0.95
    min_gain: Number = 0.0
    first: Literal["pass", "hold"] = "pass"
    where: tuple[str, ...] = Field(default=(), strict=False)
    version: Version | None = None
    estimator: str = "wdr"

    outputs: ClassVar = (
        *("passed", "candidate", "champion", "candidate_return", "champion_return"),
        *("gain", "low", "high", "why"),
    )

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["registry", "compare", self.model, self.checkpoint]
        words += _options(self, "alias", "by", "episodes", "seed", "level", "min_gain", "first")
        if self.by == "ope":
            words += [*_repeated("where", self.where), *_options(self, "version", "estimator")]
        lake = [] if at.lake is None else ["--lake", at.lake]
        return [*words, "--storage", at.storage, *lake, "--json"]


class Promote(Step):
    """Let an alias of a model name a checkpoint."""

    do: Literal["promote"] = "promote"
    model: str
    checkpoint: str
    alias: str = "champion"
    reason: str | None = None

    outputs: ClassVar = ("checkpoint", "sha256", "alias", "model")

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        words = ["registry", "set", self.model, self.alias, self.checkpoint]
        words += _options(self, "reason")
        words += ["--workflow", at.workflow, "--logical-time", at.logical_time]
        lake = [] if at.lake is None else ["--lake", at.lake]
        return [*words, "--storage", at.storage, *lake, "--json"]


class Maintain(Step):
    """Compact the lake; with vacuum_hours, remove files that no version of so long needs."""

    do: Literal["maintain"] = "maintain"
    vacuum_hours: Annotated[int, Field(ge=168)] | None = None
    always: bool = True

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        hours = [] if self.vacuum_hours is None else ["--vacuum-hours", str(self.vacuum_hours)]
        return ["lake", "maintain", *hours, *at.of_lake(), "--json"]


class Sql(Step):
    """Ask the lake; no row is a failure, and the first row's columns are outputs."""

    do: Literal["sql"] = "sql"
    query: str

    outputs: ClassVar = (ANY,)

    def command(self, at: At) -> list[str]:
        """See `Step`."""
        return ["sql", self.query, "--format", "json", *at.of_lake()]

    def found(self, printed: Mapping[str, Any]) -> dict[str, Any]:
        """See `Step`."""
        if not printed:
            raise ValueError("the query gave no row")
        return dict(printed)


class Command(Step):
    """Run a command of one's own; a JSON object on its last line has outputs. No shell is used."""

    do: Literal["command"] = "command"
    run: tuple[str | int | float, ...] = Field(min_length=1, strict=False)

    outputs: ClassVar = (ANY,)

    def command(self, at: At) -> list[str]:  # noqa: ARG002 - its words say all
        """See `Step`."""
        return [str(word) for word in self.run]

    def found(self, printed: Mapping[str, Any]) -> dict[str, Any]:
        """See `Step`."""
        return dict(printed)


AnyStep = Annotated[
    Collect | Validate | Train | Evaluate | Ope | Gate | Promote | Maintain | Sql | Command,
    Field(discriminator="do"),
]


def _options(step: Step, *names: str) -> list[str]:
    """Options of fields that are set, under the fields' names."""
    words: list[str] = []
    for name in names:
        value = getattr(step, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _repeated(name: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (f"--{name}", value)]

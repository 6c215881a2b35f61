"""Configuration: frozen pydantic models, composed in groups; every algorithm's config is one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from pipelines.config_base import Fraction, Group, PositiveInt, Schedule
from rl_ops.model_spec import Activation
from rl_ops.optim_spec import OptimKind, OptimSpec

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


class EnvConfig(Group):
    """Which environment, and how copies of it step together."""

    id: str = Field(min_length=1)
    """A Gymnasium id, or `module:factory`; `lake` for none, where all is learned from logged
    rows."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """`native`: the environment's own vector version; `sync`: copies in the rollout worker;
    `async`: a process each; `auto`: native where there is one, else sync."""
    max_episode_steps: PositiveInt | None = None
    """Time limit replacing the registered one; reaching it truncates."""


class ModelConfig(Group):
    """The network, when the default for the observation space does not serve."""

    kind: Literal["auto", "mlp", "cnn", "custom"] = "auto"
    """`auto`: a CNN for images, else an MLP."""
    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the fully connected layers."""
    activation: Activation = "tanh"
    """Between layers."""
    shared: bool = False
    """One trunk for actor and critic (a CNN's always is)."""
    conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    )
    """(channels, kernel, stride) of each convolution."""
    log_std_init: float = 0.0
    """Initial log standard deviation of continuous actions, in nats; before the tanh of squashed
    ones."""
    factory: str | None = None
    """`module:function`, called with the ModelSpec, giving an nn.Module obs → (params, value)."""
    factory_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    @model_validator(mode="after")
    def _factory_is_custom(self) -> Self:
        if (self.kind == "custom") != (self.factory is not None):
            raise ValueError("kind 'custom' and factory go together: set both or neither")
        return self


class ConnectorsConfig(Group):
    """What happens to observations, rewards and actions between environment and network."""

    obs: tuple[dict[str, Any], ...] | None = None
    """Observation connectors in order, each {kind, ...}, where kind is FlattenObs, OneHotObs,
    GrayscaleObs, ResizeObs, FrameStackObs or `module:Class`; None takes the space's default."""
    normalize_obs: bool = False
    """Subtract the running mean and divide by the running standard deviation."""
    obs_clip: float = Field(default=10.0, gt=0)
    """Limit of normalised observations, in standard deviations."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_reward: float | None = Field(default=None, gt=0)
    """Limit of rewards the learner sees; the logged reward stays."""
    squash_action: bool = False
    """Box actions by a tanh-squashed Gaussian rescaled to the bounds, instead of clipping."""


class RolloutConfig(Group):
    """How experience is gathered."""

    num_workers: int = Field(default=1, ge=0)
    """Rollout workers, each a Ray actor process; 0: each learner process rolls out by itself,
    between two updates."""
    num_envs: PositiveInt = 16
    """Sub-environments stepping together in each worker."""
    fragment_steps: PositiveInt = 128
    """Steps of each sub-environment in a fragment, the unit of exchange."""
    batch_mode: Literal["truncate", "complete_episodes"] = "truncate"
    """`truncate`: a fragment is fragment_steps steps of each sub-environment, and episodes go on in
    the next; `complete_episodes`: each runs whole episodes until it has fragment_steps steps or
    more, and waits for the slowest. An episode past 27 000 steps, 100 x fragment_steps and
    env.max_episode_steps is then an error."""
    max_policy_lag: int = Field(default=0, ge=0)
    """How many versions old the acting policy may be when its rows are consumed; 0 is
    synchronous, 1 hides the rollout behind the update. Above 0 whichever worker is free makes the
    next fragment, so that a slow one holds nobody up."""


class OptimConfig(Group):
    """The optimiser."""

    kind: OptimKind = "adam"
    """Update rule."""
    lr: Schedule = 3e-4
    """Learning rate: a number, or [[env_steps, value], ...]."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the denominator of adam, adamw and rmsprop."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of adam's first and second moments, per step."""
    alpha: Fraction = 0.99
    """Smoothing constant of rmsprop."""
    momentum: Fraction = 0.0
    """Of rmsprop and sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled for adamw, an L2 term for the others."""
    max_grad_norm: float | None = Field(default=0.5, gt=0)
    """Gradients of larger norm are scaled down to it; None never."""

    def spec(self) -> OptimSpec:
        """The optimiser without its rate, which changes with the run."""
        return OptimSpec(**self.model_dump(exclude={"lr"}))


class LearnerConfig(Group):
    """Where and how the learner runs."""

    num_workers: int = Field(default=0, ge=0)
    """0: in the driver process; N: N data-parallel Ray Train workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: cuda where torch sees one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Torch threads of each learner process; None is one: small networks gain little from a
    second thread, and lose a hundredfold where another process wants its core."""
    compile: bool = False
    """torch.compile the model: half a minute of start-up for a faster update."""


class ResourcesConfig(Group):
    """What each process reserves from Ray."""

    rollout_cpus: float = Field(default=1.0, ge=0)
    """Per rollout worker."""
    rollout_gpus: float = Field(default=0.0, ge=0)
    """Per rollout worker; may be a fraction."""
    rollout_custom: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources per rollout worker."""
    learner_cpus: float = Field(default=1.0, ge=0)
    """Per learner worker; not reserved when learner.num_workers is 0."""
    learner_gpus: float = Field(default=0.0, ge=0)
    """Per learner worker; may be a fraction."""
    learner_custom: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources per learner worker."""


class CallbackConfig(Group):
    """Code of the user's own that is told of a run's moments; see docs/callbacks.md."""

    path: str = Field(min_length=3)
    """`module:Class`, a subclass of `pipelines.Callbacks`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class EvaluationConfig(Group):
    """Evaluation during training, as a dataflow of its own pinned to one version."""

    period_iterations: PositiveInt | None = None
    """Evaluate every so many iterations; None never."""
    episodes: PositiveInt = 10
    """Whole episodes of each evaluation."""
    num_workers: PositiveInt = 1
    """Processes that share the episodes."""
    num_envs: PositiveInt = 5
    """Environments side by side, each with its share of the episodes."""
    explore: bool = False
    """Sample actions instead of taking the mode."""
    parallel: bool = False
    """Evaluate beside training; the result comes with a later iteration."""
    videos: int = Field(default=0, ge=0)
    """Further episodes at each evaluation that are filmed: videos/VERSION/ of the run's folder."""


class CheckpointConfig(Group):
    """When checkpoints are written."""

    period_iterations: PositiveInt | None = None
    """Every so many iterations; None only at the end."""
    at_end: bool = True
    """One when a stop criterion holds, or at an interrupt."""
    keep: PositiveInt | None = None
    """How many to keep, newest first; None all."""


class ReportingConfig(Group):
    """What is reported, and where."""

    window_episodes: PositiveInt = 100
    """episode_return_mean is over this many latest training episodes."""
    tensorboard: bool = True
    """Write event files beside result.json."""


class FaultsConfig(Group):
    """What happens when something fails."""

    max_worker_restarts: int = Field(default=3, ge=0)
    """Restarts of each rollout worker before the run fails."""
    max_env_failures: int = Field(default=3, ge=0)
    """Exceptions in a row of one environment before its worker fails."""
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is NaN or Inf: stop the run, or skip that minibatch and count it."""


class TraceConfig(Group):
    """What is logged of every step, and how it gets into the lake."""

    enabled: bool = True
    """Log every step, episode, metric and checkpoint."""
    lake: str | None = None
    """Folder or s3:// address of the lake; None is `lake` beside the runs."""
    episode_frac: Fraction = 1.0
    """Share of the episodes whose steps are logged; the other tables are always whole."""
    columns: tuple[Literal["obs", "final_obs", "logp", "value"], ...] = (
        *("obs", "final_obs", "logp", "value"),
    )
    """Which of the optional columns of a step are logged."""
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    """Of data files."""
    commit_interval_s: float = Field(default=5.0, gt=0)
    """A step is in the lake at the latest so long after it was used."""
    commit_rows: PositiveInt = 131_072
    """A batch is written at the latest when it has so many rows."""
    max_queue_bytes: int = Field(default=256 * 2**20, ge=2**20)
    """The learner waits while more than this is not written yet."""
    on_storage_error: Literal["stop", "wait"] = "stop"
    """A lake that cannot be written, as on a full disk: stop the run, or wait until it can."""


class StopConfig(Group):
    """When a run ends: at the first that holds."""

    training_iteration: PositiveInt | None = None
    """Iterations: versions published."""
    env_steps: PositiveInt | None = None
    """Rows consumed."""
    grad_steps: PositiveInt | None = None
    """Optimiser steps."""
    episode_return_mean: float | None = None
    """Of the latest reporting.window_episodes training episodes."""
    time_s: float | None = Field(default=None, gt=0)
    """Seconds since the process started, over all resumes."""


def _env_from_id(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


class AlgorithmConfig(Group):
    """What every algorithm's configuration has."""

    algo: str
    """Name of the algorithm."""
    env: Annotated[EnvConfig, BeforeValidator(_env_from_id)]
    """A Gymnasium id as a string, or a group."""
    seed: int = Field(default=0, ge=0)
    """Of environments, sampling, initial weights and shuffles."""
    gamma: Fraction = 0.99
    """Discount per env step."""
    train_rows: PositiveInt | None = None
    """Rows of one version, at least so many where rollout.batch_mode is complete_episodes; None
    takes one fragment of every worker."""
    model: ModelConfig = ModelConfig()
    connectors: ConnectorsConfig = ConnectorsConfig()
    rollout: RolloutConfig = RolloutConfig()
    optim: OptimConfig = OptimConfig()
    learner: LearnerConfig = LearnerConfig()
    resources: ResourcesConfig = ResourcesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    faults: FaultsConfig = FaultsConfig()
    trace: TraceConfig = TraceConfig()
    callbacks: tuple[str | CallbackConfig, ...] = ()
    """Told of the run's moments: paths `module:Class`, or groups with `path` and `kwargs`."""
    stop: StopConfig = StopConfig()

    @model_validator(mode="before")
    @classmethod
    def _keep_group_defaults(cls, values: Any) -> Any:
        """A group given in part keeps the algorithm's own defaults in the rest, not the group's."""
        if not isinstance(values, dict):
            return values
        groups = {
            name: field.default.model_dump()
            for name, field in cls.model_fields.items()
            if isinstance(field.default, BaseModel) and field.annotation is type(field.default)
        }
        partial = {k: v for k, v in values.items() if k in groups and isinstance(v, dict)}
        return values | {name: groups[name] | given for name, given in partial.items()}

    @property
    def is_offline(self) -> bool:
        """Whether all that is learned from is logged already, and nothing rolls out."""
        return False

    @model_validator(mode="after")
    def _fragments_divide(self) -> Self:
        if self.is_offline:
            return self
        rollout, ranks = self.rollout, max(1, self.learner.num_workers)
        if self.num_rollouts % ranks:
            raise ValueError(
                f"rollout.num_workers={rollout.num_workers} must be a multiple of "
                f"learner.num_workers={ranks}: each learner rank has rollout workers of its own"
            )
        rows = self.num_lanes * rollout.num_envs * rollout.fragment_steps
        if self.train_rows is not None and self.train_rows % rows:
            by_worker = self.num_lanes == self.num_rollouts
            lanes = "rollout.num_workers" if by_worker else "learner.num_workers"
            raise ValueError(
                f"train_rows={self.train_rows} is no multiple of {lanes} x num_envs x "
                f"fragment_steps = {self.num_lanes} x {rollout.num_envs} x "
                f"{rollout.fragment_steps} = {rows}; change one of them"
            )
        return self

    @property
    def num_rollouts(self) -> int:
        """Processes that roll out: rollout workers, or else the learner's own."""
        return self.rollout.num_workers or max(1, self.learner.num_workers)

    @property
    def num_lanes(self) -> int:
        """Between whom fragments are dealt in turn: workers where a seed decides, else ranks.

        At lag 0 a seed decides every row; whole episodes are seeded by their worker's turn.
        """
        rollout = self.rollout
        if rollout.max_policy_lag == 0 or rollout.batch_mode == "complete_episodes":
            return self.num_rollouts
        return max(1, self.learner.num_workers)

    @property
    def fragments_per_version(self) -> int:
        """F, how many fragments one update consumes."""
        rows = self.rollout.num_envs * self.rollout.fragment_steps
        return (self.train_rows or rows * self.num_rollouts) // rows

    def build(self, **options: Any) -> "Pipeline":
        """A `Pipeline` that runs this configuration; takes the same options."""
        # Imports torch, and without debug=True ray: not before something is to run.
        from pipelines.pipeline import Pipeline

        return Pipeline(self, **options)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """A validated copy with settings replaced: {"optim.lr": 1e-3}; see pipelines.loading."""
        # Loading reads this module; and a worker that only acts never needs it.
        from pipelines.loading import with_overrides

        return with_overrides(self, overrides)


class OnPolicyConfig(AlgorithmConfig):
    """What algorithms that learn from their newest rows share."""

    gae_lambda: Fraction = 0.95
    """1 is the Monte-Carlo return, 0 one-step TD."""
    value_coef: float = Field(default=0.5, ge=0)
    """Weight of the value term in the loss."""
    normalize_advantage: bool = False
    """Shift and scale the advantages of each loss to mean 0 and deviation 1."""
    entropy_coef: Schedule = 0.0
    """Weight of the entropy bonus: a number, or [[env_steps, value], ...]."""


class ReplayConfig(Group):
    """The memory of rows that off-policy algorithms draw their minibatches from."""

    capacity_rows: PositiveInt = 100_000
    """Newest rows that are kept, of each learner rank."""
    prioritized: bool = False
    """Draw rows by their |td_error| instead of evenly."""
    alpha: Fraction = 0.6
    """Of prioritised replay: 0 draws evenly, 1 in proportion to |td_error|."""
    beta: Schedule = 0.4
    """Of prioritised replay: how far importance weights undo the bias; 1 wholly."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to |td_error|, so that every row can be drawn."""


class TargetConfig(Group):
    """The slow copy of a network that bootstrapped targets are made with."""

    tau: float = Field(default=0.005, gt=0, le=1)
    """Share of the network that moves into the copy each time; 1 copies it."""
    period_updates: PositiveInt = 1
    """Gradient steps from one time to the next."""


class DataConfig(Group):
    """Logged steps that minibatches are drawn from, pinned to one version of their table."""

    lake: str | None = None
    """Folder or s3:// address of the lake; None is the one that the run itself logs to."""
    table: Literal["steps"] = "steps"
    """Of the lake."""
    version: int | None = Field(default=None, ge=0)
    """Of the table; None pins the newest when the run starts."""
    timestamp: str | None = None
    """Instead of a version: the one as of then, ISO 8601."""
    where: tuple[tuple[str, str, Any], ...] = ()
    """Which rows: [[column, operator, value], ...], all of which must hold."""
    columns: tuple[str, ...] = ()
    """Columns that a learner of one's own reads, beside those of its algorithm."""
    split: float = Field(default=1.0, gt=0, le=1)
    """Share of the episodes that is learned from, chosen by their names; the rest is held out."""
    validation_minibatches: int = Field(default=8, ge=0)
    """Minibatches of what is held out, whose losses each iteration has as `learner/validation/...`;
    0 for none."""
    frac: float = Field(default=1.0, gt=0, le=1)
    """Share of each minibatch; the others are rows of rollouts. At 1 nothing rolls out."""
    load: Literal["auto", "memory", "stream"] = "auto"
    """`memory`: all rows on the learner's device; `stream`: through Ray Data, with a local
    shuffle; `auto`: in memory where they fit max_memory_frac."""
    max_memory_frac: Fraction = 0.5
    """Of the memory that is free when a run starts, what `auto` may fill with rows."""
    shuffle_rows: PositiveInt = 100_000
    """Rows among which a stream is shuffled."""
    on_invalid: Literal["skip", "fail"] = "skip"
    """Episodes with gaps, doubles or values out of their space: leave them out and note them in
    `rejected`, or stop."""
    updates_per_iteration: PositiveInt = 1000
    """Gradient steps of an iteration where nothing rolls out."""

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if self.version is not None and self.timestamp is not None:
            raise ValueError("offline.version and offline.timestamp name one version; give one")
        return self


class OffPolicyConfig(AlgorithmConfig):
    """What algorithms that learn from a replay memory, or from logged steps, share."""

    offline: DataConfig | None = None
    """Logged steps to learn from, instead of rollouts or beside them; None for rollouts alone."""
    replay: ReplayConfig = ReplayConfig()
    target: TargetConfig = TargetConfig()
    updates_per_row: float = Field(default=1.0, gt=0)
    """Gradient steps per env step consumed: neither side can run ahead of the other."""
    minibatch_rows: PositiveInt = 256
    """Rows drawn for a gradient step, on each learner rank."""
    learning_starts_rows: int = Field(default=1000, ge=0)
    """Env steps before the first gradient step."""
    n_step: PositiveInt = 1
    """Rewards summed before bootstrapping; windows end where fragments do."""

    @property
    def is_offline(self) -> bool:
        """See `AlgorithmConfig.is_offline`."""
        return self.offline is not None and self.offline.frac == 1.0

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.is_offline:
            return self
        steps = self.rollout.fragment_steps
        if self.n_step > steps and self.rollout.batch_mode == "truncate":
            raise ValueError(
                f"n_step={self.n_step} is longer than rollout.fragment_steps={steps}, and windows "
                f"end where fragments do; use fragment_steps of {4 * self.n_step} or so"
            )
        return self

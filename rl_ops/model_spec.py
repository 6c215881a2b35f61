"""What a network looks like, as data: the learner builds it in torch, who only acts in numpy."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Activation = Literal["tanh", "relu", "silu"]
Head = Literal["actor_critic", "actor", "q"]
Atoms = Literal["none", "categorical", "quantile"]


@dataclass(frozen=True)
class QSpec:
    """How a Q network ends.

    Attributes:
        num_actions: A.
        dueling: Q = V + A - mean A, each from hidden units of its own (Wang et al. 2016).
        noisy: fully connected layers have noise on their weights, of learned size, instead of
            exploration from outside (Fortunato et al. 2018).
        atoms: "none" for a mean, "categorical" for probabilities of fixed values, "quantile" for
            values of fixed probabilities.
        num_atoms: N; 1 for a mean.
        v_min, v_max: first and last of the fixed values, in units of the return.
        sigma_init: initial size of the noise, times 1 / sqrt(inputs).
    """

    num_actions: int
    dueling: bool = False
    noisy: bool = False
    atoms: Atoms = "none"
    num_atoms: int = 1
    v_min: float = -10.0
    v_max: float = 10.0
    sigma_init: float = 0.5


@dataclass(frozen=True)
class SequenceSpec:
    """How much of an episode a transformer acts by.

    Attributes:
        steps: K, the newest steps that it sees.
        heads: of attention, in each block.
        dropout: share of numbers that are left out while it learns.
        max_t: steps of an episode that are told apart; later ones count as the last.
        num_actions: A of one Discrete action space; 0 for a Box.
        action_size: numbers of an action of a Box; 0 for a Discrete.
    """

    steps: int
    heads: int = 1
    dropout: float = 0.0
    max_t: int = 1000
    num_actions: int = 0
    action_size: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """What acts, over one observation array: an actor-critic, an actor alone, or a Q network.

    Attributes:
        kind: "mlp" for vectors, "cnn" for images [H, W, C], "custom" for a factory of one's own.
        obs_shape: shape of one observation, after connectors.
        param_size: P, the number of distribution parameters the actor emits; Q values are params.
        free_params: indexes of parameters that do not depend on the observation (log_std).
        hidden: widths of the fully connected layers.
        activation: between layers.
        shared: one trunk for actor and critic, or one each.
        conv: (channels, kernel, stride) of each convolution, before the hidden layers.
        log_std_init: initial value of free parameters, and bias of `log_std_params`, in nats.
        log_std_params: indexes of log_std where observations move it.
        obs_scale: observations are multiplied by it first; 1/255 for uint8 images.
        factory: "module:function", called with the spec, for kind "custom".
        factory_kwargs: JSON-able keyword arguments for the factory.
        head: what the network gives: params and a value, params alone, or Q values.
        q: how a Q network ends; None for the others.
        sequence: of a transformer, whose blocks `hidden` are; None for what acts by one
            observation.
    """

    kind: Literal["mlp", "cnn", "custom"]
    obs_shape: tuple[int, ...]
    param_size: int
    free_params: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    shared: bool = False
    conv: tuple[tuple[int, int, int], ...] = ()
    log_std_init: float = 0.0
    obs_scale: float = 1.0
    factory: str | None = None
    factory_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    log_std_params: tuple[int, ...] = ()
    head: Head = "actor_critic"
    q: QSpec | None = None
    sequence: SequenceSpec | None = None

    @property
    def num_towers(self) -> int:
        """2 when actor and critic have a trunk each, else 1."""
        return 2 if self.head == "actor_critic" and not self.shared else 1

    @property
    def has_value(self) -> bool:
        """Whether the network says what an observation is worth."""
        return self.head != "actor"

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> "ModelSpec":
        """The inverse of `to_json`; lists become tuples again."""
        values = dict(spec)
        for name in ("obs_shape", "free_params", "log_std_params", "hidden"):
            values[name] = tuple(values.get(name, ()))
        values["conv"] = tuple(tuple(layer) for layer in values["conv"])
        if values.get("q") is not None:
            values["q"] = QSpec(**values["q"])
        if values.get("sequence") is not None:
            values["sequence"] = SequenceSpec(**values["sequence"])
        return cls(**values)

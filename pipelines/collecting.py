"""Collecting: a policy acts for whole episodes, and a lake gets every step of them exactly once.

A fragment is a pure function of the collection and of its number: its environments and sampling
are seeded by it, and episodes begin and end in it. So a collection that was killed goes on after
the fragments that are committed, and ends with the rows it would have had.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import pyarrow.compute as pc

from offline import schemas as s
from offline.background import WritePolicy
from offline.lake import Lake
from offline.sink import TraceSink
from offline.spaces import register_space
from offline.steps import StepFormat
from offline.storage import Storage, require_writable
from offline.tables import create_tables
from offline.writer import LakeWriter, recover
from pipelines import provenance
from pipelines.behaviour import Behaviour
from pipelines.coordinator import env_failures
from pipelines.run_folder import check_run_id
from pipelines.tracing import next_session, rows_to_tables
from rl_ops import columns as c
from rl_ops.action_connectors import RescaleAction
from rl_ops.rollout import Rollout, RolloutSpec
from rl_ops.spaces import space_to_json

log = logging.getLogger(__name__)

ALGO: Final = "collect"
"""In column algo of table `runs`."""
FRAGMENT_STEPS: Final = 512
"""Steps of each environment in a fragment, at least; its last episode is finished."""


class CollectError(ValueError):
    """A collection that cannot be made as asked."""


@dataclass(frozen=True)
class Collection:
    """Which steps are gathered.

    Attributes:
        run_id: under which the lake has them.
        behaviour: who acts.
        rows: steps, at least: episodes that were begun are finished.
        episodes: or how many episodes: each environment runs its share, whatever their length.
        seed: of environments and sampling.
        num_envs: that step together; part of which episodes come out.
        level: what to call the behaviour, as "medium".

    Raises:
        CollectError: a number is out of range, or neither or both of rows and episodes are given.
    """

    run_id: str
    behaviour: Behaviour
    rows: int | None = None
    episodes: int | None = None
    seed: int = 0
    num_envs: int = 8
    level: str | None = None

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        if (self.rows is None) == (self.episodes is None):
            raise CollectError("give either rows or episodes, and not both")
        for name in (s.ROWS, "episodes", "num_envs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CollectError(f"{name} is {value}; expected at least 1")

    def config(self) -> dict[str, Any]:
        """JSON-able, for table `runs`; under the names of a training run where there is one."""
        env, policy = self.behaviour.env, self.behaviour.policy
        squash = any(isinstance(x, RescaleAction) for x in policy.action_connectors.steps)
        return {
            "algo": ALGO,
            s.ENV: {
                "id": env.id,
                "kwargs": dict(env.kwargs),
                "vectorization": env.vectorization,
                "max_episode_steps": env.max_episode_steps,
            },
            s.SEED: self.seed,
            "faults": {"max_env_failures": env.guard.max_failures},
            "connectors": {"squash_action": squash},
            "rollout": {
                "num_envs": self.num_envs,
                "num_workers": 0,
                "batch_mode": "complete_episodes",
            },
            "learner": {"num_workers": 0},
            ALGO: {
                **self.behaviour.about,
                "weights": self.behaviour.digest,
                "level": self.level,
                s.ROWS: self.rows,
                "episodes": self.episodes,
            },
        }

    def fragment(self, done: "Committed") -> RolloutSpec | None:
        """What the next fragment is made by; None where there is to be none."""
        steps, num_envs = 1, self.num_envs
        if self.rows is not None:
            left = self.rows - done.rows
            steps = min(FRAGMENT_STEPS, -(-left // num_envs))
        else:
            assert self.episodes is not None  # __post_init__
            left = self.episodes - done.episodes
            num_envs = min(num_envs, left)
        if left <= 0:
            return None
        return RolloutSpec(
            env=self.behaviour.env,
            policy=self.behaviour.policy,
            num_envs=num_envs,
            fragment_steps=steps,
            batch_mode="complete_episodes",
            keep=frozenset({c.OBS, c.FINAL_OBS}),
            run_id=self.run_id,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Committed:
    """What of a collection is in the lake, or on its way there.

    Attributes:
        fragments: so many, numbered from 0.
        rows: in them.
        episodes: in them; one that an exception of its environment ended does not count.
    """

    fragments: int = 0
    rows: int = 0
    episodes: int = 0

    @classmethod
    def of(cls, lake: Lake, run_id: str) -> Self:
        """As the newest versions have it."""
        where = [(c.RUN_ID, "=", run_id)]
        found = lake.steps(where=where, columns=[c.FRAGMENT_ID]).to_arrow().column(0)
        last = pc.max(found).as_py()
        whole = [*where, (c.ABORTED, "=", False)]
        episodes = lake.episodes(where=whole).count()
        return cls(0 if last is None else last + 1, len(found), episodes)

    def and_fragment(self, *, rows: int, episodes: int) -> "Committed":
        """With one more."""
        return Committed(self.fragments + 1, self.rows + rows, self.episodes + episodes)


@dataclass(frozen=True)
class Collected:
    """What is in the lake of a collection; returns are of its whole episodes, NaN without any.

    Attributes:
        run_id, level: of the collection.
        lake: its address.
        steps_version: a version of table `steps` that has the rows.
        status: finished, stopped, or already finished when it was asked for.
        new_rows: of `rows` those that this call added.
    """

    run_id: str
    level: str | None
    lake: str
    steps_version: int
    status: str
    rows: int
    new_rows: int
    episodes: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float

    def figures(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def collect(
    storage: Storage,
    wanted: Collection,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    policy: WritePolicy | None = None,
) -> Collected:
    """Have a behaviour act until the lake holds what is wanted of its steps.

    Args:
        storage: of the lake; made where there is none.
        wanted: of a run that another call began, the rest of it.
        should_stop: asked between fragments.
        policy: when rows are written.

    Raises:
        CollectError: the lake has a run of that name that is something else.
        LakeError: the lake cannot be written, or another process collects under that name.
        EnvError: an environment fails too often, or ends no episode.
        SpecError: an environment breaks its space.
    """
    require_writable(storage)
    create_tables(storage)
    for finished in recover(storage):
        log.info("%s", finished)
    with LakeWriter(storage, f"{wanted.run_id}/driver") as writer:
        status = _known_status(Lake(storage), wanted)
        before = Committed.of(Lake(storage), wanted.run_id)
        if wanted.fragment(before) is None and status == "finished":
            return _collected(storage, wanted, before, status="already finished")
        run = _Run(storage, wanted, writer)
        run.note("running")
        try:
            whole = _gather(run, before, should_stop, policy or WritePolicy())
        except BaseException as error:
            with contextlib.suppress(ValueError):  # of a lake: perhaps what failed
                run.note("failed", message=f"{type(error).__name__}: {error}")
            raise
        status = "finished" if whole else "stopped"
        run.note(status)
        return _collected(storage, wanted, before, status=status)


def _known_status(lake: Lake, wanted: Collection) -> str | None:
    """How the newest session of a run ended; None where the lake has no such run.

    Raises:
        CollectError: the run is another's.
    """
    rows = lake.runs(where=[(c.RUN_ID, "=", wanted.run_id)]).to_arrow().to_pylist()
    if not rows:
        return None
    # Of one instant, "running" came before the others.
    newest = max(rows, key=lambda row: (row[s.SESSION], row[s.AT], row[s.STATUS] != "running"))
    try:
        saved = _identity(json.loads(newest["config"]))
    except (TypeError, ValueError, LookupError):
        saved = {"algo": newest["algo"]}
    ours = _identity(json.loads(json.dumps(wanted.config())))
    differs = sorted(key for key in ours if saved.get(key) != ours[key])
    if differs:
        said = ", ".join(f"{key} is {saved.get(key)!r}, asked is {ours[key]!r}" for key in differs)
        raise CollectError(
            f"run {wanted.run_id!r} of {lake.storage.uri} is another one: {said}. Give the same "
            "to go on with it, or another run name"
        )
    return str(newest[s.STATUS])


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides every row but how many there are: a checkpoint by its content."""
    own = {key: config[key] for key in ("algo", s.ENV, s.SEED)}
    own["num_envs"] = config["rollout"]["num_envs"]
    about = dict(config[ALGO])
    own["by"] = "episodes" if about.pop(s.ROWS) is None else s.ROWS
    for name in ("episodes", "checkpoint", "level"):
        about.pop(name, None)
    return own | about


class _Run:
    """The run's own rows: of tables `runs` and `failures`."""

    def __init__(self, storage: Storage, wanted: Collection, writer: LakeWriter) -> None:
        self.storage, self.wanted = storage, wanted
        self.session = next_session(storage, wanted.run_id)
        self._writer = writer
        self._own = {c.RUN_ID: wanted.run_id, s.SESSION: self.session}
        policy = wanted.behaviour.policy
        spaces = {
            c.OBS: policy.obs_space,
            c.ACTION: policy.action_connectors.input_space,
            "env_action": policy.action_space,
        }
        self._about = {
            "algo": ALGO,
            s.ENV: wanted.behaviour.env.id,
            s.SEED: wanted.seed,
            "config": json.dumps(wanted.config()),
            "spaces": json.dumps({name: space_to_json(x) for name, x in spaces.items()}),
            "packages": provenance.packages(),
            "code": provenance.code(),
            "host": provenance.host(),
            "input_versions": "{}",
        }

    def note(self, status: str, *, message: str | None = None) -> None:
        """Log how the run is."""
        self._write(s.RUNS, {**self._about, s.STATUS: status, s.MESSAGE: message})

    def note_failures(self, rollout: Rollout) -> None:
        """Log what environments failed at."""
        for failure in env_failures(rollout.worker_id, rollout.take_failures()):
            self._write(s.FAILURES, {s.COUNT: 1, **failure})

    def _write(self, table: s.TableSchema, row: Mapping[str, Any]) -> None:
        at = time.time_ns() // 1000
        self._writer.write(rows_to_tables({table.name: [{**self._own, s.AT: at, **row}]}))

    def sink(self, policy: WritePolicy) -> TraceSink:
        """Where the run's fragments go."""
        spec = self.wanted.behaviour.policy
        actions = spec.action_connectors.input_space
        form = StepFormat(
            run_id=self.wanted.run_id,
            session=self.session,
            space=register_space(self.storage, spec.obs_space, actions),
            obs_space=spec.obs_space,
            action_space=actions,
        )
        return TraceSink(self.storage, form, rank=0, policy=policy)


def _gather(
    run: _Run, done: Committed, should_stop: Callable[[], bool], policy: WritePolicy
) -> bool:
    """Make the fragments that are missing; whether all are in the lake now."""
    wanted, sink = run.wanted, run.sink(policy)
    try:
        while (spec := wanted.fragment(done)) is not None:
            if should_stop():
                return False
            # A worker of its own, whose incarnation seeds it and tells its episodes apart.
            rollout = Rollout(spec, incarnation=done.fragments)
            try:
                rollout.load(wanted.behaviour.weights, wanted.behaviour.version)
                table = rollout.fragment(done.fragments)
                run.note_failures(rollout)
            finally:
                rollout.close()
            sink.unused([table])
            aborted = rollout.counters.aborted_episodes
            done = done.and_fragment(
                rows=table.num_rows, episodes=rollout.counters.episodes - aborted
            )
        return True
    finally:
        sink.close()


def _collected(
    storage: Storage, wanted: Collection, before: Committed, *, status: str
) -> Collected:
    lake = Lake(storage)
    now = Committed.of(lake, wanted.run_id)
    where = [(c.RUN_ID, "=", wanted.run_id), (c.ABORTED, "=", False)]
    episodes = lake.episodes(where=where, columns=[s.RETURN, s.LENGTH]).to_arrow()
    returns, lengths = (episodes.column(i).to_numpy() for i in range(2))
    nothing = len(returns) == 0
    return Collected(
        run_id=wanted.run_id,
        level=wanted.level,
        lake=storage.uri,
        steps_version=lake.steps().version,
        status=status,
        rows=now.rows,
        new_rows=now.rows - before.rows,
        episodes=now.episodes,
        return_mean=np.nan if nothing else float(returns.mean()),
        return_std=np.nan if nothing else float(returns.std()),
        return_min=np.nan if nothing else float(returns.min()),
        return_max=np.nan if nothing else float(returns.max()),
        length_mean=np.nan if nothing else float(lengths.mean()),
    )

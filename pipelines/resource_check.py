"""Whether a configuration's processes fit the machine, told before any of them starts."""

import math
from collections.abc import Mapping

from pipelines.config import AlgorithmConfig
from pipelines.config_errors import ConfigError, Problem


def check_resources(
    config: AlgorithmConfig,
    *,
    cpus: float,
    gpus: float,
    custom: Mapping[str, float] | None = None,
) -> None:
    """Refuse what Ray would wait for without end.

    With learner.num_workers=0 the learner runs in the driver and reserves nothing; the GPUs it
    is to use have to exist all the same.

    Args:
        config: what is to run.
        cpus: what the machine or cluster has.
        gpus: what it has.
        custom: custom resources it has; None leaves those unchecked.

    Raises:
        ConfigError: with the numbers and what to change.
    """
    resources = config.resources
    problems = [
        *_check(config, "cpus", resources.rollout_cpus, resources.learner_cpus, has=cpus),
        *_check(config, "gpus", resources.rollout_gpus, resources.learner_gpus, has=gpus),
        *_check_driver(config, gpus=gpus),
        *_check_whole(config),
    ]
    if custom is not None:
        rollout, learner = resources.rollout_custom, resources.learner_custom
        for name in sorted({*rollout, *learner}):
            each = rollout.get(name, 0.0), learner.get(name, 0.0)
            problems += _check(config, "custom", *each, has=custom.get(name, 0.0), what=name)
    if problems:
        raise ConfigError(*problems)


def _check(
    config: AlgorithmConfig,
    key: str,
    rollout_each: float,
    learner_each: float,
    *,
    has: float,
    what: str = "",
) -> list[Problem]:
    workers = 0 if config.is_offline else config.rollout.num_workers
    learners = config.learner.num_workers
    needs = workers * rollout_each + learners * learner_each
    # Ray counts in units of 0.0001.
    if needs <= has + 1e-4:
        return []
    what = what or key.upper().replace("S", "s")
    sums = []
    if workers or not learner_each:
        sums = [f"rollout.num_workers x resources.rollout_{key} = {workers} x {rollout_each:g}"]
    if learners and learner_each:
        sums += [f"learner.num_workers x resources.learner_{key} = {learners} x {learner_each:g}"]
    problem = f"{' plus '.join(sums)} makes {needs:g} {what}, and there are {has:g}"
    left = has - learners * learner_each
    return [Problem("resources", problem, _fix(key, rollout_each, workers=workers, left=left))]


def _fix(key: str, each: float, *, workers: int, left: float) -> str:
    fewer = math.floor((left + 1e-4) / each) if each else 0
    if 1 <= fewer < workers:
        return f"set rollout.num_workers={fewer}, or resources.rollout_{key} lower"
    share = math.floor(100 * left / workers) / 100 if workers else 0.0
    if each and share > 0:
        return f"set resources.rollout_{key}={share:g}"
    lower = f"resources.rollout_{key}=0 " if each else ""
    return f"set {lower or f'resources.learner_{key} lower '}or add machines (--ray-address)"


def _check_driver(config: AlgorithmConfig, *, gpus: float) -> list[Problem]:
    learner, wanted = config.learner, config.resources.learner_gpus
    needs_one = learner.device == "cuda" and gpus == 0
    if needs_one:
        what = 'learner.device is "cuda", and there are 0 GPUs'
        return [Problem("learner.device", what, "set learner.device=auto")]
    if learner.num_workers == 0 and wanted > gpus:
        what = f"resources.learner_gpus is {wanted:g}, and there are {gpus:g} GPUs"
        return [Problem("resources.learner_gpus", what, f"set it to {gpus:g}")]
    return []


def _check_whole(config: AlgorithmConfig) -> list[Problem]:
    problems = []
    for key in ("rollout_gpus", "learner_gpus"):
        value = getattr(config.resources, key)
        if value > 1 and value != int(value):
            fix = f"set {math.floor(value)} or {math.ceil(value)}"
            what = f"got {value:g}; Ray gives a part of one GPU or several whole ones"
            problems.append(Problem(f"resources.{key}", what, fix))
    return problems

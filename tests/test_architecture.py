"""The rules of shared design: layers, sizes, where ray and pickle may be, how deep classes go.

All of it is read from the sources' syntax trees; nothing is imported but pipelines' list of
algorithms. A list of exceptions names each with its reason; adding to it is a decision.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipelines import ALGORITHMS

ROOT = Path(__file__).parents[1]
LAYERS = ("rl_ops", "offline", "pipelines", "workflows")
"""Each may import itself and those before it."""

RL_OPS_NEEDS = {"numpy", "pyarrow", "gymnasium", "torch"}

WITHOUT_TORCH = {
    *("action_connectors", "arrays", "categorical", "codec", "columns", "complete_episodes"),
    "connectors",
    *(
        "deterministic",
        "distributions",
        "env_id",
        "env_step",
        "envs",
        "errors",
        "exploration",
        "gaussian",
    ),
    "guarded_env",
    *(
        "image_connectors",
        "inference",
        "model_spec",
        "moments",
        "obs_check",
        "object_path",
        "operators",
        "q_inference",
    ),
    *("optim_spec", "policy", "recorder", "returns", "rollout", "schedules", "spaces", "tree"),
}
"""Modules of rl_ops that a rollout worker process loads: torch would cost each 1.3 s."""

RAY_FILES = {
    "offline/ray_reading.py",
    "pipelines/evaluation_stage.py",
    "pipelines/lean_ray.py",
    "pipelines/pipeline.py",
    "pipelines/ray_backend.py",
    "pipelines/ray_session.py",
    "pipelines/ray_stream.py",
    "pipelines/rollout_worker.py",
    "pipelines/runtime.py",
    "pipelines/tune_trial.py",
    "pipelines/train_function.py",
}
"""Where ray is known, below workflows."""

PICKLE_FILES = {
    "pipelines/coordinator.py",
    "pipelines/evaluation_stage.py",
    "pipelines/ray_backend.py",
    "pipelines/rollout_worker.py",
    "pipelines/train_function.py",
}
"""Messages between processes of one run; nothing that comes from a file or a user."""

PICKLE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

MAX_LINES, MAX_ALGORITHM_LINES = 500, 200

FUNCTIONS_IN_INIT = {"pipelines/__init__.py": {"config_class"}}

COLUMN_WORDS = {
    # names of arguments, as require_shape's messages give them
    "rl_ops/categorical.py": {"action"},
    "rl_ops/gaussian.py": {"action"},
    "rl_ops/returns.py": {"is_last"},
    # words of error messages
    "rl_ops/recorder.py": {"obs"},
    "rl_ops/rollout.py": {"action"},
    # Gymnasium's key in infos
    "rl_ops/envs.py": {"final_obs"},
    # names of a Q network's streams
    "rl_ops/q_inference.py": {"value", "advantage"},
    # words of error messages
    "rl_ops/deterministic.py": {"logp"},
    # RLlib's own names
    "pipelines/rllib_names.py": {"epsilon"},
    # keys of `extras` that Policy.act returns
    "rl_ops/policy.py": {"logp", "value", "action"},
    # the batch's own name of whichever column feeds the module
    "pipelines/ppo.py": {"obs"},
    # names of columns that users may leave out, as a configuration spells them
    "pipelines/config.py": {"obs", "final_obs", "logp", "value"},
    # a word of YAML's grammar
    "pipelines/strict_yaml.py": {"value"},
}
RESULT_KEYS = {"run_id", "policy_version"}
"""Keys of results and checkpoints in pipelines, which are called as the columns are."""

SKELETONS = {"Learner", "AlgorithmConfig", "OnPolicyConfig", "OffPolicyConfig", "Act"}
"""Abstract or pydantic bases that do not count as a level: each algorithm fills them in."""


@cache
def sources() -> dict[str, ast.Module]:
    paths = [p for layer in LAYERS for p in sorted((ROOT / layer).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in paths}


def lines(name: str) -> int:
    return len((ROOT / name).read_text().splitlines())


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield module
            # `from pipelines import ppo` imports pipelines.ppo
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def runtime_imports(tree: ast.Module) -> set[str]:
    """Modules imported when the file is; not those inside functions or under TYPE_CHECKING."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= set(imports(node))
    return found


def test_imports_point_one_way() -> None:
    wrong = [
        f"{name} imports {module}"
        for name, tree in sources().items()
        for module in imports(tree)
        if top(module) in LAYERS and LAYERS.index(top(module)) > LAYERS.index(name.split("/")[0])
    ]
    assert not wrong


def test_rl_ops_needs_arrays_and_environments_and_nothing_else() -> None:
    allowed = RL_OPS_NEEDS | {"rl_ops"} | set(sys.stdlib_module_names)
    wrong = {
        f"{name} imports {module}"
        for name, tree in sources().items()
        if name.startswith("rl_ops/")
        for module in imports(tree)
        if top(module) not in allowed
    }
    assert not wrong


def test_what_a_rollout_worker_loads_does_not_import_torch() -> None:
    for module in sorted(WITHOUT_TORCH):
        for imported in runtime_imports(sources()[f"rl_ops/{module}.py"]):
            assert top(imported) != "torch", f"rl_ops.{module} imports {imported}"
            name = imported.removeprefix("rl_ops.").partition(".")[0]
            if imported.startswith("rl_ops."):
                assert name in WITHOUT_TORCH, f"rl_ops.{module} imports rl_ops.{name}"


def test_ray_is_known_in_few_files_and_in_no_algorithm() -> None:
    found = {
        name
        for name, tree in sources().items()
        if not name.startswith("workflows/") and any(top(m) == "ray" for m in imports(tree))
    }
    assert found <= RAY_FILES, f"name {sorted(found - RAY_FILES)} in RAY_FILES, or ask a backend"
    assert not found & set(algorithm_files())


def algorithm_files() -> list[str]:
    return [module.replace(".", "/") + ".py" for module, _ in ALGORITHMS.values()]


def test_modules_and_algorithms_are_short() -> None:
    limits = dict.fromkeys(sources(), MAX_LINES)
    limits |= dict.fromkeys(algorithm_files(), MAX_ALGORITHM_LINES)
    wrong = [f"{n}: {lines(n)} > {limit}" for n, limit in limits.items() if lines(n) > limit]
    assert not wrong


def test_every_module_says_what_lives_there() -> None:
    wrong = [
        name for name, tree in sources().items() if tree.body and ast.get_docstring(tree) is None
    ]
    assert not wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_a_packages_init_only_re_exports(layer: str) -> None:
    name = f"{layer}/__init__.py"
    functions = {"__getattr__", "__dir__"} | FUNCTIONS_IN_INIT.get(name, set())
    passive = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign, ast.If)
    for node in sources()[name].body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in functions, f"{name} defines {node.name}"
        else:
            assert isinstance(node, passive), f"{name}:{node.lineno} is a {type(node).__name__}"


def column_names() -> set[str]:
    nodes = sources()["rl_ops/columns.py"].body
    return {n.value.value for n in nodes if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr]


def strings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """String literals with their lines; not docstrings."""
    skipped = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in skipped:
            yield node.value, node.lineno


def test_columns_are_spelled_in_one_module_only() -> None:
    names, wrong = column_names(), []
    assert {"obs", "final_value", "episode_id"} <= names
    for name, tree in sources().items():
        layer = name.split("/")[0]
        if layer not in ("rl_ops", "pipelines") or name == "rl_ops/columns.py":
            continue
        allowed = COLUMN_WORDS.get(name, set()) | (RESULT_KEYS if layer == "pipelines" else set())
        wrong += [
            f"{name}:{line} spells {text!r}; use rl_ops.columns"
            for text, line in strings(tree)
            if text in names - allowed
        ]
    assert not wrong


def test_column_names_are_unique() -> None:
    nodes = [n for n in sources()["rl_ops/columns.py"].body if isinstance(n, ast.AnnAssign)]
    assert len(column_names()) == len(nodes)
    for node in nodes:
        assert node.target.id.lower() == node.value.value  # type: ignore[union-attr]


def test_pickle_is_for_messages_only() -> None:
    found = {
        name
        for name, tree in sources().items()
        if any(PICKLE_MODULES & set(module.split(".")) for module in imports(tree))
    }
    assert found <= PICKLE_FILES


def test_nothing_that_loads_a_checkpoint_can_unpickle() -> None:
    def loaded_with(name: str, seen: set[str]) -> set[str]:
        if name in sources() and name not in seen:
            seen.add(name)
            for module in runtime_imports(sources()[name]):
                if top(module) in LAYERS:
                    loaded_with(module.replace(".", "/") + ".py", seen)
        return seen

    for start in ("pipelines/checkpoint.py", "rl_ops/policy.py", "pipelines/loading.py"):
        assert not loaded_with(start, set()) & PICKLE_FILES
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("torch.load", "yaml.load", "yaml.unsafe_load"), name
                assert not any(
                    k.arg == "allow_pickle" and getattr(k.value, "value", True)
                    for k in node.keywords
                ), f"{name}:{node.lineno}"


def test_classes_inherit_once_at_most() -> None:
    bases: dict[str, list[str]] = {}
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = [ast.unparse(base).partition("[")[0] for base in node.bases]
                bases[node.name] = [name.rpartition(".")[2] for name in names]

    def depth(name: str) -> int:
        if name not in bases or name in SKELETONS:
            return 0
        levels = [
            1 + depth(base) for base in bases[name] if base in bases and base not in SKELETONS
        ]
        return max(levels, default=0)

    wrong = {name: bases[name] for name in bases if depth(name) > 1}
    assert not wrong


def test_no_module_is_called_utils() -> None:
    assert not [
        name for name in sources() if Path(name).stem in ("utils", "util", "helpers", "misc")
    ]

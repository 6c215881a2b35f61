"""A checkpoint's policy as a file for other runtimes: torch.export's or ONNX, connectors within.

Neither Millrace nor Ray is needed to run it. What is written is loaded again and asked for
actions, which have to be those of `load_policy`, before the file gets its name.
"""

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.checkpoint import Checkpoint
from pipelines.remote import address_of, fetched
from rl_ops.policy import Policy
from rl_ops.spaces import space_to_json
from rl_ops.tree import tree_leaves

FORMATS: Final = {".pt2": "torch", ".onnx": "onnx"}
_ROWS: Final = 16
_TOLERANCE: Final = 1e-4
"""Of actions in a continuous space, relative to what they range over: kernels round differently."""


class ExportError(ValueError):
    """A policy cannot be exported, or the file acts otherwise than the policy."""


def export_policy(
    checkpoint: str | os.PathLike[str], path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write the policy of a checkpoint to `path`: .pt2 for torch.export, .onnx for ONNX.

    Args:
        checkpoint: its folder, or its s3:// address.
        path: of the file, which is replaced whole or not at all.

    Returns:
        What the file has as metadata: `inputs` and `outputs` (names, in order), `checkpoint`,
        `run_id`, `policy_version`, and the spaces as JSON.

    Raises:
        CheckpointError: the checkpoint is not whole.
        SpecError: the policy has parts without a torch form.
        ExportError: another suffix, a package that is missing, or a file that acts otherwise.
    """
    from rl_ops.served import ServedPolicy  # imports torch

    target = Path(path).expanduser().absolute()
    format_ = FORMATS.get(target.suffix.lower())
    if format_ is None:
        raise ExportError(f"{target.name} ends neither in .pt2 (torch.export) nor in .onnx")
    if format_ == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
    found = Checkpoint(fetched(checkpoint))
    policy = Policy(found.policy, found.weights())
    served = ServedPolicy(found.policy, found.weights())
    about = _about(found, served)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        run = _WRITERS[format_](served, partial, about)
        _compare(policy, served, run)
        partial.chmod(0o644)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return about


def _about(checkpoint: Checkpoint, served: Any) -> dict[str, Any]:
    return {
        "inputs": served.inputs,
        "outputs": served.outputs,
        "checkpoint": address_of(checkpoint.path),
        "run_id": checkpoint.state["run_id"],
        "policy_version": checkpoint.state["learner"]["version"],
        "obs_space": space_to_json(checkpoint.policy.obs_space),
        "action_space": space_to_json(checkpoint.policy.action_space),
    }


def _exported(served: Any) -> Any:
    """The module as torch.export has it, for any number of rows."""
    import torch

    example = served.example()
    rows = torch.export.Dim("rows", min=1, max=1 << 20)
    shapes = (tuple({0: rows} for _ in example),)
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(served, example, dynamic_shapes=shapes)


def _write_torch(served: Any, path: Path, about: dict[str, Any]) -> Any:
    import torch

    torch.export.save(_exported(served), path, extra_files={"millrace.json": json.dumps(about)})
    module = torch.export.load(path).module()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in module(*(torch.from_numpy(np.array(x)) for x in inputs))]

    return run


def _write_onnx(served: Any, path: Path, about: dict[str, Any]) -> Any:
    import onnx
    import onnxruntime
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        # Of the exporter's own insides; and it logs each package that it does without.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _exported(served),
            dynamo=True,
            input_names=served.inputs,
            output_names=served.outputs,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"millrace": json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        told = dict(zip(served.inputs, inputs, strict=True))
        # An input that nothing depends on is left out of the graph.
        found: list[np.ndarray] = session.run(served.outputs, {name: told[name] for name in names})
        return found

    return run


_WRITERS: Final[dict[str, Any]] = {"torch": _write_torch, "onnx": _write_onnx}


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{', '.join(missing)} is not installed: pip install 'millrace[onnx]'")


def _compare(policy: Policy, served: Any, run: Any) -> None:
    """Ask the file and the policy for actions over an episode of drawn observations.

    Raises:
        ExportError: they differ.
    """
    from rl_ops.served import drawn

    space = policy.spec.obs_space
    space.seed(1)
    inputs = [x.numpy() for x in served.example(_ROWS)]
    stacked = "is_first" in served.inputs
    first = served.inputs.index("is_first") if stacked else len(inputs)
    actions = len([name for name in served.outputs if not name.startswith("next_stack")])
    state = policy.start(_ROWS)
    for step in range(4):
        batch = drawn(space, _ROWS)
        inputs[:first] = tree_leaves(batch)
        if stacked:
            inputs[first] = np.full(_ROWS, step == 0)
        wanted, state, _ = policy.act(batch, state)
        outputs = run(inputs)
        _same(list(tree_leaves(wanted)), outputs[:actions])
        if stacked:
            inputs[first + 1 :] = outputs[actions:]


def _same(wanted: list[np.ndarray], got: list[np.ndarray]) -> None:
    for one, other in zip(wanted, got, strict=True):
        if one.dtype != other.dtype or one.shape != other.shape:
            raise ExportError(
                f"the file gives {other.dtype}{list(other.shape)}, the policy "
                f"{one.dtype}{list(one.shape)}; please report this"
            )
        if one.dtype.kind == "f":
            scale = max(1.0, float(np.abs(one).max(initial=0.0)))
            same = bool(np.allclose(one, other, rtol=0.0, atol=_TOLERANCE * scale))
        else:
            # Two choices may be equally good but for rounding: those are rare.
            same = float((one != other).mean()) <= 0.1
        if not same:
            raise ExportError(
                f"the file acts otherwise than the policy: {other[:3]} instead of {one[:3]}; "
                "please report this"
            )

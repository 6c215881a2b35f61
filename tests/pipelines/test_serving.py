"""Policies as files for other runtimes: torch.export's and ONNX, without Millrace."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from pipelines import export_policy, load_policy
from pipelines.serving import ExportError
from rl_ops.errors import SpecError
from rl_ops.model_spec import SequenceSpec
from rl_ops.served import ServedPolicy, drawn
from tests.pipelines.serving_kit import saved_checkpoint, saved_sac
from tests.rollout_kit import env_spec, policy_spec, random_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

STACKED = {"normalize_obs": True, "obs": [{"kind": "FrameStackObs", "num_frames": 3}]}
NOISY = {"dueling": True, "noisy": True}
SMALL = {
    "ppo": {"env": "CartPole-v1"},
    "dqn": {"env": "CartPole-v1", "learning_starts_rows": 32, "q": NOISY},
    "sac": {"env": "Pendulum-v1", "learning_starts_rows": 32},
    "impala": {"env": "CartPole-v1", "connectors": STACKED},
}


@pytest.fixture(scope="module", params=SMALL)
def saved(request, tmp_path_factory):
    """An algorithm's checkpoint after two iterations."""
    storage, given = tmp_path_factory.mktemp("serving"), SMALL[request.param]
    return saved_checkpoint(storage, request.param, name=request.param, iterations=2, **given)


def observations(policy, rows):
    policy.spec.obs_space.seed(5)
    return drawn(policy.spec.obs_space, rows)


ALONE = """
import json, sys
import numpy as np

obs = np.load(sys.argv[2])
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    names = [each.name for each in session.get_inputs()]
    def run(inputs):
        return session.run(None, {name: inputs[name] for name in names})
    about = json.loads(session.get_modelmeta().custom_metadata_map["millrace"])
else:
    import torch
    extra = {"millrace.json": ""}
    module = torch.export.load(sys.argv[1], extra_files=extra).module()
    about = json.loads(extra["millrace.json"])
    def run(inputs):
        with torch.no_grad():
            given = [torch.from_numpy(inputs[name]) for name in about["inputs"]]
            return [x.numpy() for x in module(*given)]
found = []
for rows in (1, len(obs)):
    inputs = {"obs": obs[:rows]}
    for name in about["inputs"][1:]:
        first = np.ones(rows, bool)
        inputs[name] = first if name == "is_first" else np.zeros((rows, 12), np.float32)
    found.append(np.asarray(run(inputs)[0]).tolist())
assert not [name for name in sys.modules if name in ("ray", "rl_ops", "pipelines")]
print(json.dumps(found))
"""


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_acts_as_the_policy_in_a_process_that_knows_nothing_of_it(saved, tmp_path, suffix):
    about = export_policy(saved, tmp_path / f"policy{suffix}")
    assert about["run_id"] == saved.parents[1].name
    policy = load_policy(saved)
    obs = observations(policy, 7)
    np.save(tmp_path / "obs.npy", obs)
    words = [sys.executable, "-c", ALONE, f"policy{suffix}", "obs.npy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, together = json.loads(done.stdout)
    wanted = policy.act(obs)[0]
    np.testing.assert_allclose(together, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alone, wanted[:1], rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == suffix] == [
        f"policy{suffix}"
    ]


def test_a_file_that_acts_otherwise_never_gets_its_name(tmp_path, monkeypatch, one):
    from rl_ops import served

    monkeypatch.setattr(served, "normalize", lambda x, **_: x)
    monkeypatch.setitem(served._ACTION, served.RescaleAction, lambda step, action, space: action)
    with pytest.raises(ExportError, match="acts otherwise"):
        export_policy(one, tmp_path / "p.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return saved_sac(tmp_path_factory.mktemp("one"))


def test_a_missing_package_is_named(one, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.serving.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx.*pip install 'millrace\[onnx\]'"):
        export_policy(one, tmp_path / "p.onnx")


def test_a_policy_that_remembers_is_refused(tmp_path):
    spec = policy_spec(env_spec("CartPole-v1"), hidden=(8,))
    model = dataclasses.replace(spec.model, sequence=SequenceSpec(steps=4))
    with pytest.raises(SpecError, match="sequence of steps"):
        ServedPolicy(dataclasses.replace(spec, model=model), random_weights(spec))

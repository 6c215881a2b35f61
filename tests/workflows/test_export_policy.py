"""`millrace export policy`: what it writes, says and refuses."""

import pytest

from tests.pipelines.serving_kit import saved_sac

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return saved_sac(tmp_path_factory.mktemp("one"))


def test_the_command_says_what_goes_in_and_out(millrace, one, tmp_path):
    done = millrace("export", "policy", "r", tmp_path / "p.onnx", "--storage", one.parents[2])
    assert done.exit_code == 0, done.output
    assert "inputs     obs" in done.output
    assert "outputs    action" in done.output
    model = onnx.load(str(tmp_path / "p.onnx"))
    onnx.checker.check_model(model)
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("r", "p.bin"), "ends neither in .pt2"),
        (("nonesuch", "p.pt2"), "no run"),
    ],
)
def test_what_cannot_be_is_refused(millrace, one, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = millrace("export", "policy", *words, "--storage", one.parents[2])
    assert done.exit_code == 2
    assert said in done.output
    assert list(tmp_path.iterdir()) == []

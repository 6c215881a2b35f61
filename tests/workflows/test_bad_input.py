"""Bad input: exit 2, one message that says what was meant, nothing written."""

import json
import subprocess
import sys

import pytest

TRAIN = ["train", "ppo", "--env", "CartPole-v1", "--debug"]

BAD = {
    "unknown algorithm": (
        ["train", "ppoo", "--env", "CartPole-v1"],
        ['unknown algorithm "ppoo"', "did you mean ppo?", "a2c, apex, appo, "],
    ),
    "no algorithm": (["train"], ["which algorithm?", "a2c, apex, appo, "]),
    "unknown environment": (
        ["train", "ppo", "--env", "CartPol-v1", "--debug"],
        ["CartPol-v1", "did you mean CartPole-v1"],
    ),
    "no environment": (["train", "ppo", "--debug"], ["env: missing", "--env CartPole-v1"]),
    "no module of an environment": (
        ["train", "ppo", "--env", "nowhere_at_all:make", "--debug"],
        ["nowhere_at_all", "PYTHONPATH"],
    ),
    "escape codes in an environment": (
        ["train", "ppo", "--env", "\x1b[31mCartPole", "--debug"],
        ["\\x1b[31mCartPole"],
    ),
    "unknown key": (
        [*TRAIN, "--set", "rollout.num_worker=2"],
        ["rollout.num_worker", "did you mean `rollout.num_workers`?"],
    ),
    "RLlib's key": (
        [*TRAIN, "--config", '{"num_workers": 8}'],
        ["--config", "num_workers", "write rollout.num_workers=8"],
    ),
    "wrong type": (
        [*TRAIN, "--set", "optim.lr=fast"],
        ["--set: optim.lr", '"fast"', "number"],
    ),
    "a setting without value": ([*TRAIN, "--set", "optim.lr"], ["key=value"]),
    "config is no JSON": ([*TRAIN, "--config", "{lr: 1}"], ["--config:1", "double quotes"]),
    "stop is no JSON": ([*TRAIN, "--stop", "100"], ["--stop"]),
    "unknown stop criterion": (
        [*TRAIN, "--stop", '{"env_step": 10}'],
        ["--stop", "did you mean `stop.env_steps`"],
    ),
    "rows that do not divide": (
        [*TRAIN, "--set", "train_rows=1000"],
        ["train_rows=1000", "no multiple"],
    ),
    "several mistakes at once": (
        [*TRAIN, "--set", "optim.lrr=1", "--set", "gama=1"],
        ["optim.lrr", "gama", "did you mean `gamma`?"],
    ),
    "more CPUs than there are": (
        ["train", "ppo", "--env", "CartPole-v1", "--set", "rollout.num_workers=4096"],
        ["makes 4096 CPUs", "and there are"],
    ),
    "more GPUs than there are": (
        ["train", "ppo", "--env", "CartPole-v1", "--set", "resources.rollout_gpus=64"],
        ["makes 64 GPUs", "and there are"],
    ),
    "a GPU that is not there": (
        [*TRAIN, "--set", "learner.device=cuda"],
        ["learner.device", "set cpu or auto"],
    ),
    "a cluster that does not answer": (
        ["train", "ppo", "--env", "CartPole-v1", "--ray-address", "127.0.0.1:1"],
        ["--ray-address", "nothing answers", "ray start --head"],
    ),
    "an address of Ray's client": (
        ["train", "ppo", "--env", "CartPole-v1", "--ray-address", "ray://127.0.0.1:10001"],
        ["--ray-address", "HOST:PORT"],
    ),
    "another framework": ([*TRAIN, "--framework", "tf2"], ["torch only", "tf2"]),
    "a name with a path": ([*TRAIN, "--name", "../up"], ["--name", "../up", "folder"]),
    "storage that is a file": ([*TRAIN, "--storage", "/dev/null"], ["--storage", "not a folder"]),
    "storage below a file": ([*TRAIN, "--storage", "/dev/null/x"], ["--storage", "not a folder"]),
    "object storage of another kind": (
        [*TRAIN, "--storage", "gs://bucket/runs"],
        ["--storage", "gs:// is none"],
    ),
    "an address without a bucket": ([*TRAIN, "--storage", "s3://"], ["names no bucket"]),
    "a seed below 0": ([*TRAIN, "--seed", "-1"], ["--seed"]),
    "RLlib's option": (
        ["train", "ppo", "--num-samples", "3"],
        ["--num-samples is RLlib's", "one command is one run"],
    ),
    "RLlib's way to name an algorithm": (
        ["train", "--run", "PPO", "--env", "CartPole-v1"],
        ["--run is RLlib's", "millrace train ppo"],
    ),
    "RLlib's flag": (["train", "ppo", "--eager"], ["--eager is RLlib's", "--debug"]),
    "a file that is not there": (["train", "file", "no.yaml"], ["no.yaml", "no such file"]),
    "train file without a file": (["train", "file"], ["which file?"]),
    "one argument too many": (["train", "ppo", "a2c"], ["one argument too many"]),
    "a run that is not there": (["train", "--resume", "no-run"], ['no run "no-run"']),
    "a checkpoint that is not there": (["evaluate", "/no/where"], ["/no/where", "no folder"]),
    "no episodes": (["evaluate", "x", "--episodes", "0"], ["--episodes"]),
    "unknown example": (
        ["example", "run", "cartpole-pp0"],
        ["no example", "did you mean cartpole-ppo?"],
    ),
    "a plan of nothing": (["plan", "pppo"], ['unknown algorithm "pppo"']),
    "a plan of a file that is not there": (["plan", "x.yaml"], ["x.yaml", "no such file"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_what_was_meant(millrace, case, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words, expected = BAD[case]
    result = millrace(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    missing = [text for text in expected if text not in result.stderr]
    assert not missing, result.stderr
    left = [path.name for path in tmp_path.rglob("*")]
    assert left in ([], ["ray_results"])


YAML = {
    "unknown key": (
        "rollout:\n  num_worker: 2\n",
        ["F.yaml:4: rollout.num_worker", "did you mean"],
    ),
    "duplicate key": ("gamma: 0.9\ngamma: 0.8\n", ["F.yaml:4", "given twice"]),
    "wrong type": ("gamma: high\n", ["F.yaml:3: gamma", '"high"']),
    "code": ("gamma: !!python/object/apply:os.system ['touch owned']\n", ["F.yaml:3", "no code"]),
    "alias": ("model: &a {hidden: [64]}\noptim: *a\n", ["F.yaml:3", "anchor"]),
    "tab": ("optim:\n\tlr: 1\n", ["F.yaml:4", "tab"]),
}


@pytest.mark.parametrize("case", YAML)
def test_a_bad_file_is_refused_with_its_line(millrace, case, tmp_path):
    text, expected = YAML[case]
    path = tmp_path / "F.yaml"
    path.write_text("algo: ppo\nenv: CartPole-v1\n" + text)
    result = millrace("train", "file", path, "--debug", "--storage", tmp_path / "storage")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert all(part in result.stderr for part in expected), result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["F.yaml"]


def test_a_file_without_an_algorithm_says_what_to_add(millrace, tmp_path):
    path = tmp_path / "F.json"
    path.write_text(json.dumps({"env": "CartPole-v1"}))
    result = millrace("train", "file", path)
    assert result.exit_code == 2
    assert "add algo:" in result.stderr


def test_cheap_mistakes_are_refused_before_torch_is_imported():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom workflows.cli import cli\n"
        "for words in (['train', 'ppoo'], ['train', 'ppo', '--stop', '7'], "
        "['train', '--resume', 'x'], ['train', 'file', 'x.yaml']):\n"
        "    assert CliRunner().invoke(cli, words).exit_code == 2\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Files of sweeps: every mistake with its line, before Ray is started."""

import pytest

from pipelines.config_errors import ConfigError
from workflows.sweeps.spec import SweepSpec, load_sweep

GOOD = """\
algo: ppo
env: CartPole-v1
base:
  rollout: {num_envs: 4, fragment_steps: 16}
  minibatch_rows: 32
sweep:
  optim.lr: {loguniform: [1e-4, 1e-2]}
  gamma: {choice: [0.98, 0.99]}
  seed: {grid: [0, 1]}
stop: {training_iteration: 2}
"""


def refused(folder, text):
    path = folder / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path).check()
    return str(caught.value).replace(f"{path}:", "L")


def test_what_a_clone_goes_on_from_is_kept_however_long_it_waits(tmp_path):
    from workflows.sweeps.running import checkpoints_kept

    base = {"algo": "ppo", "env": "CartPole-v1", "sweep": {"optim.lr": {"uniform": [0.1, 0.2]}}}
    pbt = {"pbt": {"perturbation_interval": 1, "mutate": ["optim.lr"]}}
    clones = SweepSpec.model_validate({**base, "scheduler": pbt, "checkpoint_period": 1})
    assert checkpoints_kept(clones) is None
    assert checkpoints_kept(SweepSpec.model_validate(base)) == 2


def test_a_file_is_read_and_a_sample_of_each_combination_built(tmp_path):
    (tmp_path / "s.yaml").write_text(GOOD)
    sweep = load_sweep(tmp_path / "s.yaml")
    config = sweep.check()
    assert (config.algo, config.env.id, config.seed) == ("ppo", "CartPole-v1", 1)
    assert config.optim.lr == pytest.approx(1e-3)
    assert config.stop.training_iteration == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("optim.lr:", "optim.lrr:", "L7: optim.lrr: unknown key; did you mean `optim.lr`"),
        ("minibatch_rows: 32", "minibatch_rws: 32", "L5: minibatch_rws: unknown key"),
        ("grid: [0, 1]", "grid: [0, x]", "L9: seed: got"),
        ("loguniform: [1e-4, 1e-2]", "loguniform: [1e-2, 1e-4]", "lower to a higher"),
        ("loguniform: [1e-4, 1e-2]", "loguniform: [0, 1]", "begins above 0"),
        ("grid: [0, 1]", "grid: [0], choice: [1]", "give one of"),
        ("grid: [0, 1]", "grid_search: [0, 1]", "write {grid: [...]}"),
        ("algo: ppo", "algo: ppoo", 'L1: algo: got "ppoo": unknown algorithm; did you mean ppo?'),
        ("algo: ppo", "run: PPO", "write algo: NAME"),
        ("stop:", "scheduler: {asha: {}}\nstop:", "max_t is missing"),
        ("stop:", "search: {optuna: {}}\nstop:", "write choice, not grid, for seed"),
        ("stop:", "concurrency: 0\nstop:", "a number from 1"),
        ("stop:", "scheduler: {pbt: {perturbation_interval: 1, mutate: [x]}}\nstop:", "x does not"),
        ("training_iteration: 2", "training_iterations: 2", "did you mean"),
        ("stop:", "stop: {}\nstop:", "given twice"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_was_meant(tmp_path, old, new, said):
    assert old in GOOD
    assert said in refused(tmp_path, GOOD.replace(old, new, 1))


def test_the_command_refuses_what_does_not_go_together(millrace, tmp_path):
    for words, said in [
        ((), "give either FILE or --resume"),
        (("--resume", "none", "--storage", tmp_path), "is no sweep"),
        ((tmp_path / "none.yaml",), "no such file"),
    ]:
        done = millrace("sweep", *words)
        assert done.exit_code == 2, done.output
        assert said in done.output

"""Which code is shipped to a cluster: the working directory, where a configuration names it."""

import sys

import pytest

from pipelines import PPOConfig
from pipelines.own_code import own_code
from pipelines.ray_session import runtime_env


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_shipped_env.py").write_text("")
    (tmp_path / "my_shipped_package").mkdir()
    (tmp_path / "my_shipped_package" / "__init__.py").write_text("")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_shipped")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "given",
    [
        {"env": "my_shipped_env:make"},
        {"env": "CartPole-v1", "callbacks": ["my_shipped_package.inner:Watch"]},
        {"env": "CartPole-v1", "callbacks": [{"path": "my_shipped_env:Watch"}]},
        {"env": "CartPole-v1", "model": {"kind": "custom", "factory": "my_shipped_env:net"}},
    ],
)
def test_what_is_named_and_lies_here_is_shipped(here, given):
    assert own_code(PPOConfig(**given)) == here


@pytest.mark.parametrize(
    "given",
    [
        {"env": "CartPole-v1"},
        {"env": "gymnasium.envs:nothing"},
        {"env": "CartPole-v1", "callbacks": ["nonesuch_module:Watch", "os:path"]},
    ],
)
def test_what_is_installed_or_absent_is_not(here, given):
    assert own_code(PPOConfig(**given)) is None


def test_within_a_ray_job_its_own_environment_stays(here, monkeypatch):
    assert runtime_env(here)["working_dir"] == str(here)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert runtime_env(here) is None

"""Files from disk, from the web and in Python: read strictly, refused with file:line."""

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config_files import load_config_file
from pipelines.loading import ConfigError, build_config, file_layer

ALGORITHMS = {"plain": ("pipelines.config", "OnPolicyConfig")}
GOOD = """\
algo: plain
env: {id: CartPole-v1}
optim.lr: 1e-3
stop: {episode_reward_mean: 450}
description: A cart and a pole.
measured: {episode_return_mean: 500.0, env_steps: 100000}
"""


def refused(source: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config_file(source)
    return str(caught.value)


def test_a_file_has_settings_and_what_is_said_of_them(tmp_path: Path) -> None:
    path = tmp_path / "cartpole.yaml"
    path.write_text(GOOD)
    file = load_config_file(path)
    assert set(file.values) == {"algo", "env", "optim.lr", "stop"}
    assert (file.description, file.path) == ("A cart and a pole.", str(path))
    assert file.measured == {"episode_return_mean": 500.0, "env_steps": 100000}
    assert file.lines["env.id"] == 2
    config = build_config("plain", [file_layer(file)], algorithms=ALGORITHMS)
    assert (config.env.id, config.optim.lr) == ("CartPole-v1", 1e-3)
    assert config.stop.episode_return_mean == 450.0


def test_json_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "F.JSON"
    path.write_text('{"algo": "plain",\n "env": "CartPole-v1",\n "gama": 1}')
    file = load_config_file(path)
    assert (file.description, dict(file.measured), file.lines["gama"]) == ("", {}, 3)
    with pytest.raises(ConfigError, match=r"F\.JSON:3: gama: unknown key; did you mean `gamma`"):
        build_config("plain", [file_layer(file)], algorithms=ALGORITHMS)


def test_a_wrong_value_points_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "F.yaml"
    path.write_text("algo: plain\nenv: E-v0\nmodel:\n  hidden:\n  - 64\n  - wide\n")
    layer = file_layer(load_config_file(path))
    with pytest.raises(
        ConfigError, match=r'F\.yaml:4: model\.hidden: got \[64, "wide"\], expected'
    ):
        build_config("plain", [layer], algorithms=ALGORITHMS)


def test_description_and_measured_have_types(tmp_path: Path) -> None:
    path = tmp_path / "F.yaml"
    path.write_text("env: x\ndescription: [1]\n")
    assert "F.yaml:2: description: got [1], expected text" in refused(path)
    path.write_text("env: x\nmeasured: 3\n")
    assert "F.yaml:2: measured: got 3, expected a mapping" in refused(path)


def test_a_missing_file_is_answered_with_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "cartpole-ppo.yaml").write_text(GOOD)
    message = refused(tmp_path / "cartpole-pqo.yaml")
    assert message.endswith("no such file; beside it there is cartpole-ppo.yaml")
    assert "there is no folder" in refused(tmp_path / "none" / "F.yaml")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").mkdir()
    assert refused(tmp_path / "d.yaml").endswith("a folder; give a file in it")
    assert "a file ending in .toml; give .yaml, .yml, .json, .py" in refused(tmp_path / "F.toml")
    assert "a file ending in nothing" in refused(tmp_path / "F")
    assert "cannot be read" in refused("F\0.yaml")
    assert "an address of kind file" in refused("file:///etc/x.yaml")
    assert "an address of kind s3" in refused("s3://bucket/x.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"a" * (11 << 20))
    assert refused(big).endswith("more than 1 MiB; a configuration has a few kB")


PYTHON = '''\
"""Made in Python."""
from pipelines.config import OnPolicyConfig
config = OnPolicyConfig(algo="plain", env="E-v0", rollout={"num_envs": 2 + 1})
measured = {"episode_return_mean": 1.0}
'''


def test_a_local_python_file_defines_config(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(PYTHON)
    file = load_config_file(path)
    config = build_config("plain", [file_layer(file)], algorithms=ALGORITHMS)
    assert (config.rollout.num_envs, file.description) == (3, "Made in Python.")
    assert file.measured == {"episode_return_mean": 1.0}
    # A file called json.py does not become the module json.
    assert getattr(sys.modules["json"], "config", None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", 'no `config`; define config = PPOConfig(env="CartPole-v1")'),
        ("config = {'env': 'x'}\n", "`config` is dict; define config = "),
        ("x = 1\nx +\n", ":2: no Python: invalid syntax"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", ":2: raises KeyError: 'k'"),
        ("import no_such_module\n", ":1: raises ModuleNotFoundError: No module named"),
        (PYTHON.replace("2 + 1", "0"), ":3: raises ValidationError: 1 validation error"),
    ],
)
def test_python_that_gives_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "F.py"
    path.write_text(text)
    assert f"{path}{message}" in refused(path) or f"{path}: {message}" in refused(path)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x.yaml")
            self.end_headers()
            return
        bodies = {
            "/F.yaml": GOOD.encode(),
            "/page.yaml": b"\n<!DOCTYPE html><html>",
            "/big.yaml": b"a" * (2 << 20),
            "/bad.yaml": b"a: 1\na: 2\n",
        }
        body = bodies.get(self.path.partition("?")[0])
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_a_file_from_the_web_is_read_and_its_secrets_are_not_shown(server: str) -> None:
    file = load_config_file(f"{server}/F.yaml?token=secret")
    assert file.values["algo"] == "plain"
    assert file.path == f"{server}/F.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config_file(f"{server}/bad.yaml?token=secret")
    assert str(caught.value).startswith(f"{server}/bad.yaml:2: `a` is given twice")
    assert refused(f"{server}/F.yaml?token=secret\x7f") == (
        f"{server}/F.yaml: cannot be fetched: InvalidURL"
    )
    address = server.replace("http://", "http://user:secret@")
    assert refused(f"{address}/F.yaml") == (
        f"{server}/F.yaml: an address with a password in it is not used; "
        "download the file and give its path"
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/F.py", "Python from an address is not run; download it, read it, and give its path"),
        ("/none.yaml", "the server answers 404"),
        ("/page.yaml", ":1: this is a web page (it starts with '<'); give the address of the raw"),
        ("/big.yaml", "more than 1 MiB"),
        ("/away.yaml", "cannot be fetched: unknown url type: ftp"),
        ("/F", "a file ending in nothing"),
    ],
)
def test_what_the_web_must_not_give_is_refused(server: str, path: str, message: str) -> None:
    assert message in refused(server + path)


def test_a_server_that_is_not_there_is_one_clear_error() -> None:
    assert "cannot be fetched: " in refused("http://127.0.0.1:9/F.yaml")


def test_a_server_that_is_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pipelines.config_files.TIMEOUT_S", 0.2)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as silent:
        assert "timed out" in refused(f"http://127.0.0.1:{silent.server_port}/F.yaml")

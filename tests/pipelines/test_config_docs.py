"""The page on configuration is what the schema says, and the schema says all."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import ALGORITHMS
from pipelines.config import AlgorithmConfig, OnPolicyConfig
from pipelines.config_docs import main, render, undescribed
from pipelines.config_schema import fields_of
from pipelines.loading import config_class


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_every_field_has_a_description(algo: str) -> None:
    assert undescribed(config_class(algo)) == []


def test_the_page_is_current() -> None:
    command = [sys.executable, "-m", "pipelines.config_docs", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_noticed_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.config_docs.PATH", tmp_path / "docs" / "configuration.md")
    assert main(["--check"]) == 1
    assert "is stale; run `python -m pipelines.config_docs`" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_the_page_has_every_field_of_every_algorithm() -> None:
    classes = {algo: config_class(algo) for algo in ALGORITHMS}
    page = render(classes)
    for chosen in (AlgorithmConfig, *classes.values()):
        fields = fields_of(chosen).items()
        missing = [p for p, f in fields if not f.is_group and f"| `{p}` |" not in page]
        assert missing == []


def test_an_algorithms_own_defaults_are_told_and_bars_do_not_break_the_table() -> None:
    class Slow(OnPolicyConfig):
        """Slow | steady.

        More on it.
        """

        gamma: float = 0.5
        """Left | right."""

    page = render({"slow": Slow})
    assert "## slow\n\nSlow | steady.\n" in page
    assert "| `gamma` | number | `0.5` | Left \\| right. |" in page

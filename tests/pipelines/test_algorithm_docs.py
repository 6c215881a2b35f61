"""The page on algorithms is what their files say."""

from pathlib import Path

import pytest

from pipelines import ALGORITHMS
from pipelines.algorithm_docs import main, render


def test_the_page_is_current() -> None:
    assert main(["--check"]) == 0, "run `python -m pipelines.algorithm_docs`"


def test_a_stale_page_is_noticed_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "algorithms.md"
    monkeypatch.setattr("pipelines.algorithm_docs.PATH", page)
    page.write_text("old")
    assert main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert main([]) == main(["--check"]) == 0
    assert page.read_text() == render()


def test_every_algorithm_has_its_lines_its_paper_and_its_dataflow() -> None:
    page = render()
    for algo, (module, _) in ALGORITHMS.items():
        section = page.partition(f"\n## {algo}\n")[2].partition("\n## ")[0]
        assert f"`{module.replace('.', '/')}.py`, " in page
        assert f"{algo} on " in section
        assert ("-> weights, by version, to Rollouts" in section) != ("LakeSource(" in section)
        assert any(named in section for named in ("arXiv:", "Neural Computation", "NeurIPS"))

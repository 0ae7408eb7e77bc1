"""The notebook of the docs runs from its first cell to its last, as a user would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "data_to_audit.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.is_file(), reason="the notebook is not in this directory")


def cells() -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_has_no_outputs_and_only_python() -> None:
    for number, source in enumerate(cells()):
        compile(source, f"cell {number}", "exec")
    assert not any(cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"]), "clear all outputs"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Jupyter, which the tests do not need: the cells are plain Python and share their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(cells()):
        exec(compile(source, f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert (
        "800 training rows; 160 evaluation rows" in printed and "drift" in printed and "adapter_config.json" in printed
    )
    assert (tmp_path / "data-to-audit" / "audit" / "audit.html").is_file()

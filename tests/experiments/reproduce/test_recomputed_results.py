"""The kept results say what their kept rows say, and the forest plot draws them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from balora.plots.forest import ForestLine, forest_plot

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results"


def script():
    spec = importlib.util.spec_from_file_location("recompute_results", ROOT / "scripts" / "recompute_results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kept_tables_and_pages_are_those_of_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = script()
    chosen = {name: module.EXPERIMENTS[name] for name in ("table2", "table10")}
    monkeypatch.setattr(module, "EXPERIMENTS", chosen)
    for name in chosen:
        shutil.copytree(RESULTS / name, tmp_path / name)
    for name in ("methods.md", "methods-gsm8k.json", "methods-sst2.json"):
        shutil.copy(RESULTS / name, tmp_path / name)
    before = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.md")}
    assert module.recompute(tmp_path) == []
    after = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.md")}
    assert after == before, "run scripts/recompute_results.py docs/results"
    assert (tmp_path / "forest.svg").stat().st_size > 1000


def test_no_kept_page_rests_on_the_bootstrap_over_seeds():
    for page in RESULTS.rglob("*.md"):
        text = page.read_text()
        if page.name not in ("paper.md", "gpu.md"):  # the latter resamples seeds and documents together
            assert "bootstrap" not in text and r"\*" not in text and "no clear difference" not in text, page


def test_every_verdict_of_a_kept_page_is_a_corrected_interval():
    for path in RESULTS.rglob("table.json"):
        for group in json.loads(path.read_text())["groups"]:
            for gap in group["differences"].values():
                assert gap["low"] is None or gap["comparisons"] >= 1
                if gap["p"] is not None and (gap["low"] > 0 or gap["high"] < 0):
                    assert gap["p"] < 0.05, path


def test_a_forest_plot_cuts_wide_intervals_and_marks_decided_ones(tmp_path: Path):
    lines = [
        ForestLine(label="decided", mean=0.1, low=0.05, high=0.15),
        ForestLine(label="wide", mean=0.0, low=-9.0, high=9.0),
        ForestLine(label="one seed", mean=0.2, low=None, high=None),
    ]
    png, svg = forest_plot([("Losses", "difference", lines)], tmp_path / "forest")
    text = svg.read_text()
    assert png.stat().st_size > 5000 and "#0072b2" in text.lower() and "#8a8f94" in text.lower()

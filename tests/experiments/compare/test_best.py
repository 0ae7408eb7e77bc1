"""The best of a table, its marks in every format, the screen at 80 columns, and the figures."""

from __future__ import annotations

import numpy as np
import pytest

from balora.experiments.compare.best import describe_best, find_best
from balora.experiments.compare.figures import write_figures
from balora.experiments.compare.screen import screen_lines
from balora.experiments.compare.tables import to_latex, to_markdown
from comparisons import made_up

SEEDS = {
    "lora": {"accuracy": [0.70, 0.71, 0.72], "loss": [1.00, 1.01, 1.02], "anchor_drift": [0.010, 0.011, 0.012]},
    "pissa": {"accuracy": [0.80, 0.81, 0.82], "loss": [0.90, 0.91, 0.92], "anchor_drift": [0.050, 0.052, 0.054]},
    "balora": {"accuracy": [0.84, 0.79, 0.83], "loss": [0.80, 0.81, 0.82], "anchor_drift": [0.030, 0.031, 0.032]},
}


def test_the_best_is_bold_and_what_is_not_told_apart_has_a_dagger() -> None:
    made = made_up(SEEDS, "lora")
    best = find_best(made)
    assert best["accuracy"].comparisons == 9, "all pairs of three scores"
    assert (best["accuracy"].group, best["accuracy"].open, best["accuracy"].worse) == (2, (0, 1), ())
    assert (best["loss"].group, best["loss"].open, best["loss"].worse) == (2, (0, 1), ()), "equal gaps have no interval"
    assert best["anchor_drift"].group == 0, "less drift is better"
    markdown, latex = to_markdown(made, best), to_latex(made, best)
    assert "| **0.8200 ± 0.0265 (se 0.0153)** | **0.8100" in markdown
    assert markdown.count("**") == 6 and latex.count(r"\textbf{") == 3, "only the best of each score"
    assert r"0.8100 $\pm$ 0.0100 (se 0.0058)$^{\dagger}$" in latex
    assert latex.count(r"\toprule") == 2 and r"\hline" not in latex
    assert (
        "accuracy: the best is balora with 0.8200; not told apart from it: lora, pissa." in describe_best(made, best)[0]
    )


def test_a_clear_best_is_told_apart() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (2, 8))
    made = made_up({"lora": list(0.7 + noise[0]), "pissa": list(0.8 + noise[1])}, None)
    best = find_best(made)["accuracy"]
    assert (best.group, best.open, best.worse) == (1, (), (0,))
    assert find_best(made_up({"lora": [0.5, 0.6]}, None)) == {}, "one configuration is no comparison"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_screen_keeps_its_width(width: int) -> None:
    made = made_up(SEEDS, "lora")
    lines = screen_lines(made, find_best(made), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "anchor_drift  pissa   +0.0410 [" in text and "worse" in text, "more drift is worse"
    assert "corrected" in text and "Holm" in text


def test_the_figures_have_three_formats_and_the_methods_colours(tmp_path) -> None:
    made = made_up({name: found["accuracy"] for name, found in SEEDS.items()}, "lora")
    files = write_figures(made, find_best(made), tmp_path)
    names = [f"{stem}.{kind}" for stem in ("scores", "differences") for kind in ("png", "svg", "pdf")]
    assert [path.name for path in files] == names
    assert b"#009e73" in files[1].read_bytes(), "BA-LoRA has its colour"
    assert b"CreationDate" not in files[2].read_bytes(), "the same data give the same bytes"

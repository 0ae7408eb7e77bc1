"""Statistics over seeds, and the four formats of the table."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import pytest

from balora.experiments.compare import Comparison, Row, summarise
from balora.experiments.compare.screen import screen_lines
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import to_csv, to_json, to_latex, to_markdown


def row(variant: str, seed: int, score: float | None, *, axes=None, **more) -> Row:
    done = score is not None
    return Row(
        run=f"{variant}-{seed}", variant=variant, method=variant, regularized=False, axes=axes or {}, seed=seed,
        status="finished" if done else "failed", reason=None if done else "It broke.", provenance={},
        scores={"accuracy": score} if done else {}, **{"seconds": 2.0, "peak_memory_mib": 500.0, "trainable": 1234, **more},
    )  # fmt: skip


ROWS = [
    row("pissa", 1, 0.5), row("pissa", 2, 0.9), row("pissa", 3, None),
    row("lora_x", 1, 0.6), row("lora_x", 2, 0.8), row("lora_x", 3, 0.4),
]  # fmt: skip
ABOUT = {
    "provenance": {"time": "t", "versions": {"torch": "2"}, "hardware": {"device": "d", "cores": 2}, "commit": None},
    "seeds": [1, 2, 3], "jobs": 1, "engine": "local", "data_digests": ["abc"],
}  # fmt: skip


def comparison(rows=ROWS, baseline="pissa") -> Comparison:
    groups = summarise(rows, ["accuracy"], baseline)
    return Comparison(groups=groups, rows=rows, scores=["accuracy"], baseline=baseline, about=ABOUT)


def test_mean_and_sample_deviation():
    spread = MeanStd.of([1.0, 2.0, 4.0])
    assert spread.mean == pytest.approx(7 / 3)
    assert spread.deviation == pytest.approx(math.sqrt(7 / 3))
    assert MeanStd.of([1.0]) == MeanStd(1.0, None, 1)
    assert MeanStd.of([math.nan, None]) is None
    assert MeanStd.of([math.nan, 2.0]).count == 1


def test_differences_are_paired_by_seed():
    pissa, lora = summarise(ROWS, ["accuracy"], "pissa")
    assert (pissa.finished, pissa.planned, pissa.differences) == (2, 3, {})
    gap = lora.differences["accuracy"]
    assert gap.pairs == 2, "seed 3 of the baseline failed"
    assert gap.mean == pytest.approx(0.0), "not the difference of the means, 0.6 - 0.7"
    assert (gap.low, gap.high) == pytest.approx((-1.270620, 1.270620)), "Student's, with one degree of freedom"


def test_runs_are_paired_at_the_same_varied_values():
    rows = [row(name, 1, score, axes={"rank": rank}) for name, rank, score in
            [("pissa", 1, 0.1), ("pissa", 2, 0.2), ("lora", 1, 0.5), ("lora", 2, 0.5)]]  # fmt: skip
    rows.append(row("full", 1, 0.9))
    gaps = {(g.variant, g.axes.get("rank")): g.differences for g in summarise(rows, ["accuracy"], "pissa")}
    assert gaps["lora", 1]["accuracy"].mean == pytest.approx(0.4)
    assert gaps["lora", 2]["accuracy"].mean == pytest.approx(0.3)
    assert gaps["full", None] == {}, "one run cannot be compared with two baselines"
    against_full = {(g.variant, g.axes.get("rank")): g.differences for g in summarise(rows, ["accuracy"], "full")}
    assert against_full["lora", 1]["accuracy"].mean == pytest.approx(-0.4)


def test_all_formats_show_the_same_numbers():
    result = comparison()
    markdown, latex = to_markdown(result), to_latex(result)
    assert "| lora_x | 3/3 | 0.6000 ± 0.2000 (se 0.1155) | 2.0 ± 0.0 | 500 ± 0 | 1,234 |" in markdown
    assert r"lora\_x & 3/3 & 0.6000 $\pm$ 0.2000 (se 0.1155)" in latex
    assert "| pissa | 2/3 |" in markdown
    for text in (markdown, latex):
        assert "pissa-3: It broke." in text
    assert "over 2 seeds" in markdown
    lines = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert float(lines[1]["accuracy_mean"]) == pytest.approx(0.6)
    assert float(lines[1]["accuracy_difference"]) == pytest.approx(0.0)
    assert lines[0]["accuracy_difference"] == ""
    whole = json.loads(to_json(result))
    assert whole["groups"][1]["scores"]["accuracy"]["mean"] == pytest.approx(0.6)
    assert len(whole["rows"]) == 6
    assert any("0.6000 ± 0.2000" in line for line in screen_lines(result))


def test_a_nan_score_is_left_out_and_counted():
    result = comparison([row("pissa", 1, 0.5), row("pissa", 2, math.nan)], baseline=None)
    assert "0.5000 (1 of 2)" in to_markdown(result)
    assert json.loads(to_json(result))["rows"][1]["scores"]["accuracy"] is None


def test_one_pair_has_no_interval():
    markdown = to_markdown(comparison([row("pissa", 1, 0.5), row("lora_x", 1, 0.6)]))
    assert "+0.1000" in markdown and "[" not in markdown
    assert "No difference has an interval" in markdown


def test_the_old_name_of_the_directory_warns(tmp_path):
    result = dataclasses.replace(comparison(), directory=tmp_path)
    with pytest.warns(DeprecationWarning, match=r"Comparison\.directory"):
        assert result.folder == tmp_path

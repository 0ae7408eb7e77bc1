"""Figures 2, 4 and 5: made-up numbers in the right positions, on the page and in the drawing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.experiments.compare import Comparison
from balora.experiments.compare.plan import Cell
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, Study
from balora.experiments.reproduce.figure_parts import (
    balance_panel,
    end_table,
    mean_line,
    precision_panel,
    read_curves,
    sweep_panel,
)
from balora.experiments.reproduce.figures import IN_4_BITS, MODELS
from balora.experiments.reproduce.preparation import QUICKSTART_ROWS
from balora.experiments.reproduce.run import missing_files
from balora.plots.style import METHOD_MARKS
from comparisons import comparison_of, made_up_row

ROOT = Path(__file__).resolve().parents[3]
PATHS = Paths(shared=Path("../shared"), recipes=ROOT / "recipes")


def cells_of(name: str, study: Study, scale: str = "small") -> list[Cell]:
    return Request(experiment=EXPERIMENTS[name], scale=scale, output=Path("out"), paths=PATHS, seeds=[1, 2]).cells(
        study
    )


def scored(study: Study, cells: list[Cell], value, folder: Path | None = None) -> Comparison:
    """A comparison whose scores are a function of the cell."""
    rows = [
        made_up_row(cell.variant.name, cell.seed, {study.score: value(cell)}, run=cell.name, axes=cell.axes)
        for cell in cells
    ]
    return comparison_of(rows, study.baseline, folder)


def test_figure2_draws_the_task_loss_of_every_run_as_a_mean_over_seeds(tmp_path: Path):
    experiment = EXPERIMENTS["figure2"]
    study = experiment.small[0]
    cells = cells_of("figure2", study)
    assert {cell.config.training["logging_steps"] for cell in cells} == {2}
    assert all(cell.config.method.alpha == cell.config.method.rank for cell in cells)
    methods = {"lora": 3.0, "pissa": 2.0, "balora": 1.0}
    for cell in cells:
        level = methods[cell.variant.name] + cell.axes["method.rank"] / 100 + cell.seed / 10
        lines = [{"step": step, "loss": 99.0, "task": level + 1 / step} for step in range(2, 22, 2)]
        path = tmp_path / "runs" / cell.name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 20, "eval_loss": 7.0}]))
    comparison = scored(study, cells, lambda cell: 1.0, tmp_path)
    curves = read_curves(comparison)
    assert set(curves) == {(name, rank) for name in methods for rank in (8, 32)}
    line = mean_line(curves["lora", 8], window=1)
    assert [point.x for point in line] == list(range(2, 22, 2))
    assert line[0].mean == pytest.approx(3.08 + 0.15 + 0.5)
    assert line[0].deviation == pytest.approx(0.1 / 2**0.5)
    # The last tenth of ten values is the last one: 1 + 0.32 + 1/20 + 0.15, and what PiSSA has on the same seed is 1 more.
    row = next(row for row in end_table(curves, [32, 8]).splitlines() if row.startswith("| balora"))
    assert "1.5200 ± 0.0707<br>-1.0000 ± 0.0000" in row.split("|")[2]
    text = "\n\n".join(experiment.render([study], {study.name: comparison}, tmp_path))
    assert "figure2.png" in text
    drawn = (tmp_path / "figure2.svg").read_text()
    assert all(
        colour.lower() in drawn for colour in (METHOD_MARKS[name].colour for name in ("lora", "pissa", "balora"))
    )
    assert "rank 32" in drawn and "nats per target token" in drawn


def test_a_run_that_logged_no_task_loss_has_no_curve(tmp_path: Path):
    study = EXPERIMENTS["figure2"].small[0]
    assert read_curves(scored(study, cells_of("figure2", study), lambda cell: 1.0, tmp_path)) == {}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_figure4_sweeps_the_declared_weights(scale: str):
    study = EXPERIMENTS["figure4"].studies(scale)[0]
    weights = {
        cell.variant.name: (terms.consistency, terms.diversity, terms.spectral)
        for cell in cells_of("figure4", study, scale)
        for terms in [cell.config.regularization]
    }
    assert len(set(weights.values())) == len(weights), "no run is made twice"
    assert weights["λ1 = 0.025"] == (0.025, 0.005, 0.005)
    assert weights["λ1 = 0"] == (0.0, 0.005, 0.005)
    assert weights["weak chaos, λ2 + λ3 = 0.01"] == pytest.approx((0.025, 0.001, 0.009))
    assert weights["weak order, λ2 + λ3 = 0.01"] == pytest.approx((0.025, 0.009, 0.001))
    assert weights["pissa"] == (0.0, 0.0, 0.0)


def test_figure4_draws_each_weight_at_its_position(tmp_path: Path):
    experiment = EXPERIMENTS["figure4"]
    study = experiment.small[0]

    def value(cell: Cell) -> float:
        terms = cell.config.regularization
        return 9.0 if cell.variant.name == "pissa" else terms.consistency + 10 * terms.diversity + 100 * terms.spectral

    made = scored(study, cells_of("figure4", study), value)
    sweep, balance = sweep_panel(made, study), balance_panel(made, study)
    assert sweep.ticks == ["0", "0.025", "0.1", "0.5", "2.5"]
    means = {name: [point.mean for point in points] for name, points in {**sweep.series, **balance.series}.items()}
    assert means["balora"] == pytest.approx([0.55, 0.575, 0.65, 1.05, 3.05])
    assert means["λ2 + λ3 = 1"] == pytest.approx([91.025, 55.025, 19.025])
    assert means["λ2 + λ3 = 0.01"][1] == pytest.approx(0.575), "the paper's own weights"
    for panel in (sweep, balance):
        assert panel.level is not None and (panel.level[1].mean, panel.level[1].deviation) == (9.0, 0.0)
    text = "\n\n".join(experiment.render([study], {study.name: made}, tmp_path))
    assert "no interval: λ1 = 0," in text, "no seed differs from another"
    assert "10% (weak chaos), 50% (optimal), 90% (weak order)" in text
    assert (tmp_path / "figure4.png").stat().st_size > 10_000


def test_figure5_shows_each_method_in_both_precisions(tmp_path: Path):
    experiment = EXPERIMENTS["figure5"]
    study = experiment.small[0]
    values = {"lora": 3.0, "qlora": 3.5, "pissa": 2.0, "qpissa": 2.5, "balora": 1.9, "qbalora": 2.6}
    cells = cells_of("figure5", study)
    jitter = {"balora": 1e-5, "qlora": 1e-5}
    made = scored(
        study, cells, lambda cell: values[cell.variant.name] + jitter.get(cell.variant.name, 0.0) * (cell.seed % 7)
    )
    panel = precision_panel(made, study, IN_4_BITS)
    assert {name: tuple(round(dot.mean, 3) for dot in pair) for name, pair in panel.rows.items()} == {
        "lora": (3.0, 3.5), "pissa": (2.0, 2.5), "balora": (1.9, 2.6),
    }  # fmt: skip
    text = "\n\n".join(experiment.render([study], {study.name: made}, tmp_path))
    assert "compared with pissa: better: balora (-0.1000" in text
    assert "compared with qpissa: better: none; worse: qlora (+1.0000" in text
    assert "32 bits" in (tmp_path / "figure5.svg").read_text()
    assert {study.name for study in experiment.paper} == set(MODELS)
    assert len(MODELS) == 10


def test_figure5_writes_the_quickstarts_rows_before_its_runs(tmp_path: Path):
    asked = Request(experiment=EXPERIMENTS["figure5"], scale="small", output=tmp_path, paths=PATHS)
    study = asked.experiment.small[2]
    assert missing_files(asked.config(study)), "they are not there yet"
    assert asked.missing(study) == []
    QUICKSTART_ROWS.ensure(asked.own_paths)
    assert missing_files(asked.config(study)) == []
    rows = [json.loads(line) for line in (tmp_path / "prepared" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 2400
    assert set(rows[0]) == {"prompt", "response"}

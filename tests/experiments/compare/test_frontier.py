"""`compare --frontier drift`: a curve for each method, values at equal drift and equal score, and the files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import pytest

from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import Variant, lay_out, read_variants
from balora.experiments.compare import frontier as frontiers
from balora.experiments.compare.frontier import default_knobs, frontier_variants, make_frontier
from balora.experiments.compare.frontier_files import to_csv, to_json, write_frontier
from comparisons import ABOUT, comparison_of, made_up_row

LORA, HELD = Variant.parse("lora"), Variant.parse("lora+anchor")
VARIANTS = [dataclasses.replace(v, measured=True) for v in (LORA, HELD)]
KNOBS = {"anchor.weight": [1, 10], "export.scale": [0.5, 1]}
GENERATION = {"model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "t"}, "output": "o"}


def made_up(score: str = "accuracy", seeds=(0, 1, 2)):
    """Curves on which everything is known: lora's accuracy is 0.4 + drift, that of the anchored ones 0.6 + drift."""
    rows = []
    for seed in seeds:
        noise = 0.001 * seed
        for scale, drift in ((0.5, 0.1), (1, 0.2)):
            scores = {score: 0.4 + drift + noise, "anchor_drift": drift}
            rows.append(made_up_row("lora", seed, scores, axes={"export.scale": scale}, run=f"lora-{seed}-{scale}"))
            scores = {score: 0.6 + drift + noise, "anchor_drift": drift}
            rows.append(made_up_row("lora+anchor", seed, scores, axes={"export.scale": scale}))
        for weight, drift in ((1, 0.2), (10, 0.02)):
            scores = {score: 0.6 + drift + noise, "anchor_drift": drift}
            rows.append(made_up_row("lora+anchor", seed, scores, axes={"anchor.weight": weight}))
    comparison = comparison_of(rows, "lora")
    return dataclasses.replace(comparison, about={**ABOUT, "config": GENERATION})


def test_curves_and_readings():
    found = make_frontier(made_up(), VARIANTS, KNOBS, at_drift=[0.15], at_score=[0.7])
    assert [curve.name for curve in found.curves] == ["lora", "lora+anchor, anchor.weight", "lora+anchor, export.scale"]
    read = {(r.kind, r.curve): r for r in found.readings}
    assert len(read) == 6
    for name, start in (("lora", 0.4), ("lora+anchor, export.scale", 0.6)):
        part = math.log(0.15 / 0.1) / math.log(0.2 / 0.1)  # straight over the logarithm of the drift
        assert read["score", name].estimate.mean == pytest.approx(start + 0.1 + 0.1 * part + 0.001)
        low, high = read["score", name].estimate.low, read["score", name].estimate.high
        assert high - low == pytest.approx(2 * 4.302653 * 0.001 / 3**0.5, rel=1e-4), "Student's, two degrees of freedom"
    assert read["drift", "lora"].estimate is None and "from 0.501 to 0.601" in read["drift", "lora"].remark
    drifts = [0.02 * 10 ** ((0.7 - 0.62 - 0.001 * seed) / 0.18) for seed in range(3)]
    assert read["drift", "lora+anchor, anchor.weight"].estimate.mean == pytest.approx(sum(drifts) / 3)


def test_levels_by_default_are_where_all_curves_are_and_at_the_baselines_score():
    found = make_frontier(made_up(), VARIANTS, KNOBS)
    levels = {kind: {r.level for r in found.readings if r.kind == kind} for kind in ("score", "drift")}
    assert list(levels["score"]) == pytest.approx([(0.1 * 0.2) ** 0.5])
    assert list(levels["drift"]) == pytest.approx([0.601])
    apart = make_frontier(made_up(), VARIANTS, {"anchor.weight": [1, 10], "export.scale": [0.5]})
    assert any("has one point" in note for note in apart.notes)


def test_a_curve_that_does_not_reach_a_level_is_said_and_not_extrapolated():
    found = make_frontier(made_up(), VARIANTS, KNOBS, at_drift=[0.05])
    read = {r.curve: r for r in found.readings if r.kind == "score"}
    assert read["lora"].estimate is None and "its drift goes from 0.1 to 0.2" in read["lora"].remark
    assert read["lora+anchor, anchor.weight"].estimate is not None
    disjoint = dataclasses.replace(made_up(), baseline=None)
    rows = [
        dataclasses.replace(r, scores={**r.scores, "anchor_drift": 50 * r.scores["anchor_drift"]})
        if r.variant == "lora" else r for r in disjoint.rows
    ]  # fmt: skip
    far = make_frontier(dataclasses.replace(disjoint, rows=rows), VARIANTS, KNOBS)
    assert any("No drift lies in the range of every curve" in note for note in far.notes)


def test_some_seeds_may_miss_a_level_and_one_seed_has_no_interval():
    rows = list(made_up().rows)
    rows = [
        dataclasses.replace(r, scores={**r.scores, "anchor_drift": 2 * r.scores["anchor_drift"]})
        if (r.variant, r.seed) == ("lora", 0) else r for r in rows
    ]  # fmt: skip
    found = make_frontier(dataclasses.replace(made_up(), rows=rows), VARIANTS, KNOBS, at_drift=[0.15])
    read = next(r for r in found.readings if r.curve == "lora" and r.kind == "score")
    assert read.remark == "2 of 3 seeds reach it" and read.estimate.count == 2
    one = make_frontier(made_up(seeds=(1,)), VARIANTS, KNOBS, at_drift=[0.15])
    assert any("take more seeds" in note for note in one.notes)
    assert one.readings[0].estimate.low is None


def test_less_is_better_for_a_loss(tmp_path):
    found = make_frontier(made_up("loss"), VARIANTS, KNOBS)
    assert found.lower_is_better and found.score == "loss"
    written = write_frontier(found, made_up("loss"), tmp_path)
    assert {path.name for path in written} == {
        f"frontier.{s}" for s in ("png", "svg", "pdf", "md", "csv", "json", "html")
    }
    assert all(path.stat().st_size > 500 for path in written)
    page = (tmp_path / "frontier.html").read_text()
    assert "data:image/svg+xml" in page and "Read off the curves" in page
    assert 'src="http' not in page and "<script" not in page
    assert (
        "less is better" in (tmp_path / "frontier.svg").read_text() or "<svg" in (tmp_path / "frontier.svg").read_text()
    )
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [line["kind"] for line in lines].count("point") == 6
    assert {line["kind"] for line in lines} == {"point", "at equal drift", "at equal score"}
    assert json.loads(to_json(found))["curves"][0]["points"][0]["seeds"]["0"] == [0.1, 0.5]


def test_what_is_missing_is_said():
    with pytest.raises(BALoraError, match="No run has the score gsm8k"):
        make_frontier(made_up(), VARIANTS, KNOBS, score="gsm8k")
    rows = [dataclasses.replace(row, scores={"anchor_drift": 0.1}) for row in made_up().rows]
    with pytest.raises(BALoraError, match=r"set data\.eval"):
        make_frontier(dataclasses.replace(made_up(), rows=rows), VARIANTS, KNOBS)
    with pytest.raises(BALoraError, match="numbers"):
        frontiers.check_knobs({"anchor.weight": ["high"]})
    with pytest.raises(BALoraError, match="anchor: FILE"):
        frontier_variants({"task": "classification"}, [LORA])


def test_knobs_vary_one_at_a_time_and_every_run_measures_its_drift(tmp_path):
    _, variants = read_variants(["lora", "lora+anchor", "balora"], [])
    knobs = {**default_knobs(variants), "regularization.consistency": [0.1, 0.2]}
    measured = frontier_variants(GENERATION, variants)
    cells, _ = lay_out(GENERATION, measured, [1, 2], axes=knobs, output=tmp_path / "c", one_by_one=True)
    runs = {cell.run_directory.name: cell.config for cell in cells if cell.seed == 1}
    assert sorted(runs) == sorted([
        "lora_seed-1", "lora+anchor_seed-1", "balora_seed-1",
        *(f"lora+anchor_weight-{w}_seed-1" for w in ("1.0", "3.0", "10.0", "30.0")),
        "balora_consistency-0.1_seed-1", "balora_consistency-0.2_seed-1",
    ])  # fmt: skip
    assert len([c for c in cells if c.seed == 1]) == 3 * 4 + 4 + 2
    for name, config in runs.items():
        assert config.anchor.measure_only == ("anchor" not in name), name
        assert config.anchor.generate == 512


def test_the_command_trains_draws_and_reads_off(balora, config: Path, tmp_path: Path):
    arguments = [
        config, "--frontier", "drift", "--methods", "lora,lora+anchor", "--seeds", "1", "--baseline", "lora",
        "--knob", "anchor.weight=1,30", "--knob", "export.scale=0.5,1", "training.max_steps=3", "data.eval=0.25",
        "training.report_to=none", "training.learning_rate=0.02", "anchor={generate: 16, tokens: 8}",
    ]  # fmt: skip
    dry = balora("compare", *arguments, "--dry-run")
    assert "6 runs" in dry.out
    outcome = balora("compare", *arguments)
    assert outcome.status == 0, outcome.out + outcome.err
    directory = tmp_path / "run-compare"
    assert len(list((directory / "runs").iterdir())) == 4
    assert len(list((directory / "anchors").glob("*.safetensors"))) == 1
    found = json.loads((directory / "frontier.json").read_text())
    drifts = {c["name"]: [p["drift"]["mean"] for p in c["points"]] for c in found["curves"]}
    weak, strong = drifts["lora+anchor, anchor.weight"]
    assert strong < weak < drifts["lora"][1], "anchors hold, the stronger the more"
    assert drifts["lora"][0] < drifts["lora"][1]
    assert "frontier.html" in outcome.out and (directory / "frontier.html").is_file()
    again = balora("compare", *arguments, "--at-drift", "0.001")
    assert "6 are finished already" in again.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--frontier", "drft"], "'drift'"),
        (["--knob", "anchor.weight=1,2"], "--frontier drift"),
        (["--frontier", "drift", "--vary", "method.rank=1,2"], "--knob"),
        (["--frontier", "drift", "--at-score", "high"], "numbers"),
        (["--frontier", "drift", "--knob", "method.target_modules=a,b"], "numbers"),
    ],
)
def test_mistakes_are_said(balora, config: Path, arguments, part):
    outcome = balora("compare", config, *arguments)
    assert outcome.status == 2 and part in outcome.err


def test_the_config_of_the_file_is_untouched(config: Path):
    values = read_config(config)
    before = json.dumps(values)
    frontier_variants(values, [LORA])
    assert json.dumps(values) == before

"""`compare --vary export.scale` evaluates each run at several scales after one training; runs share generated anchors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from balora.anchoring.rows import FILE, AnchorRows
from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import Variant, compare, parse_axes, plan, read_variants
from balora.experiments.compare.rows import is_finished
from balora.loading.trained import load
from balora.training import run as training_run
from balora.training.anchors import anchor_source
from balora.training.scaled_evaluation import evaluate_scaled, scaled_metrics
from comparisons import InProcessEngine

SETTINGS = {
    "data": {"eval": 0.25},
    "training": {"max_steps": 2, "use_cpu": True, "report_to": "none", "learning_rate": 0.05},
    "anchor": {"generate": 8, "tokens": 8},
}


def values_of(config: Path, **changes) -> dict:
    values = read_config(config)
    for key, value in {**SETTINGS, **changes}.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def test_one_training_serves_every_scale(config: Path, tmp_path: Path, monkeypatch):
    trained: list[str] = []
    sampled: list[int] = []
    run, sample = training_run._train, anchor_source.sample_sequences
    monkeypatch.setattr(training_run, "_train", lambda *a: trained.append(Path(a[1].output).name) or run(*a))
    monkeypatch.setattr(anchor_source, "sample_sequences", lambda *a, **k: sampled.append(1) or sample(*a, **k))
    _, variants = read_variants(["lora+anchor", "pissa+anchor"], [])
    axes = parse_axes(["export.scale=0,0.5,1"])
    made = compare(values_of(config), variants, [1], axes=axes, output=tmp_path / "c", engine=InProcessEngine())
    assert not made.failures, made.failures
    assert sorted(trained) == ["lora-anchor_seed-1", "pissa-anchor_seed-1"] or len(trained) == 2
    assert len(sampled) == 1, "both runs read the same file"
    files = [path.read_bytes() for path in (tmp_path / "c" / "runs").glob(f"*/{FILE}")]
    rows = [AnchorRows.load(p, 0.125, 1).rows for p in (tmp_path / "c" / "runs").glob(f"*/{FILE}")]
    assert len(files) == 2 and rows[0] == rows[1]
    found = {(row.variant, row.axes["export.scale"]): row.scores for row in made.rows}
    assert len(found) == 6
    for name in ("lora+anchor", "pissa+anchor"):
        assert abs(found[name, 0]["anchor_drift"]) < 1e-5, "nothing of the change"
        assert 0 < found[name, 0.5]["anchor_drift"] < found[name, 1]["anchor_drift"]
        assert found[name, 0]["loss"] == pytest.approx(found["lora+anchor", 0]["loss"], rel=1e-4)
        record = json.loads((tmp_path / "c" / "runs" / made.rows[0].run.split("_scale")[0] / "run.json").read_text())
        assert record["status"] == "finished"
    assert all("train_loss" not in scores for (_, scale), scores in found.items() if scale != 1)
    assert "export.scale" in (tmp_path / "c" / "table.md").read_text()

    more = parse_axes(["export.scale=0.25,0.5,1"])
    again = compare(values_of(config), variants, [1], axes=more, output=tmp_path / "c", engine=InProcessEngine())
    assert len(trained) == 2, "nothing is trained again for another scale"
    assert not again.failures


def test_the_measured_scale_is_that_of_the_loaded_model(config: Path, tmp_path: Path):
    from balora.config.run_config import RunConfig

    values = values_of(config, output=str(tmp_path / "run"), method={"name": "pissa", "rank": 4})
    result = training_run.run(RunConfig.from_dict(values))
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    evaluate_scaled(result.folder, [0.5, 1.0])
    assert scaled_metrics(result.folder, 1.0)["eval_loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-5)
    assert scaled_metrics(result.folder, 1.0)["anchor_drift"] == pytest.approx(result.metrics["anchor_drift"], rel=1e-3)
    assert all(path.read_bytes() == content for path, content in before.items()), "the run is as it was"
    model, base = load(result.folder, scale=0.5), load(result.folder, scale=0)
    rows = AnchorRows.load(result.folder / FILE, 0.125, 42)
    drift = count = 0.0
    for number in rows.held_out:
        row = rows.rows[number]
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            own, other = (m(ids).logits[0, :-1].log_softmax(-1) for m in (model, base))
        kept = labels[0, 1:] != -100
        drift += float((other.exp() * (other - own)).sum(-1)[kept].sum())
        count += int(kept.sum())
    assert scaled_metrics(result.folder, 0.5)["anchor_drift"] == pytest.approx(drift / count, rel=1e-3)


def test_cells_at_several_scales_share_a_run_and_have_names_of_their_own(config: Path, tmp_path: Path):
    _, variants = read_variants(["lora"], [])
    cells = plan(values_of(config), variants, [1], {"export.scale": [0.5, 1, 2.0]}, tmp_path)
    assert len({cell.run_directory for cell in cells}) == 1
    assert [cell.name for cell in cells] == ["lora_seed-1_scale-0.5", "lora_seed-1", "lora_seed-1_scale-2.0"]
    assert not any(is_finished(cell) for cell in cells)


@pytest.mark.parametrize(
    ("method", "axis", "part"),
    [
        ("dora", "export.scale=0.5", "norms of the weights"),
        ("lora", "export.scale=half", "finite number"),
        ("lora", "export.scales=0.5", "export.scale"),
    ],
)
def test_scales_that_cannot_be_are_refused_before_any_run(config: Path, tmp_path: Path, method, axis, part):
    with pytest.raises(BALoraError, match=part):
        plan(values_of(config), [Variant.parse(method)], [1], parse_axes([axis]), tmp_path)


def test_plus_anchor_takes_the_configs_anchors_and_the_others_have_none(config: Path, tmp_path: Path):
    _, variants = read_variants(["lora", "lora+anchor", "lora+reg+anchor"], [])
    cells = plan(values_of(config), variants, [1], {"anchor.weight": [1, 3]}, tmp_path)
    found = {cell.name: cell.config for cell in cells}
    assert len(cells) == 5, "a run without anchors ignores their weight"
    plain = next(cell.config for cell in cells if cell.variant.name == "lora")
    assert plain.anchor is None
    assert {c.config.anchor.weight for c in cells if c.variant.anchored} == {1, 3}
    assert all(c.config.regularization.active for c in cells if c.variant.name == "lora+reg+anchor"), found
    without = {key: value for key, value in values_of(config).items() if key != "anchor"}
    (generated,) = plan(without, [Variant.parse("lora+anchor")], [1], {}, tmp_path)
    assert generated.config.anchor.generate == 512

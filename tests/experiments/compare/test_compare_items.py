"""Results by item: every run keeps them, and a comparison's intervals use them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from balora.config.yaml_loader import read_config
from balora.evaluation.significance.items import Items, items_from_dict
from balora.experiments.compare import Variant, compare, summarise
from balora.experiments.compare.rows import read_items
from balora.experiments.compare.statistics import Difference, correct
from balora.experiments.compare.tables import explain_intervals, to_csv, to_latex, to_markdown, verdict_of, verdict_text
from comparisons import InProcessEngine, made_up


def test_a_run_keeps_the_loss_of_each_evaluation_row(config: Path, tmp_path: Path):
    values = read_config(config)
    values["training"] |= {"max_steps": 1, "report_to": "none", "per_device_eval_batch_size": 64}
    rows = tmp_path / "eval.jsonl"
    names = {"prompt": values["data"]["prompt"], "response": values["data"]["response"]}
    rows.write_text(
        "".join(json.dumps({names["prompt"]: f"say {n}", names["response"]: "a " * (n + 1)}) + "\n" for n in range(7))
    )
    values["data"] = {**values["data"], "eval": str(rows)}
    made = compare(
        values, [Variant.parse("lora"), Variant.parse("full")], [1, 2], baseline="lora", output=tmp_path / "out",
        engine=InProcessEngine(),
    )  # fmt: skip
    assert not made.failures, made.failures
    for row in made.rows:
        content = json.loads((tmp_path / "out" / "runs" / row.run / "items.json").read_text())
        items = items_from_dict(content)
        assert items is not None and len(set(items.ids)) == 7
        assert items.value("loss") == pytest.approx(row.scores["loss"], rel=1e-4), "one batch has all rows"
    gap = made.groups[1].differences["loss"]
    assert gap.basis in ("seeds and items", None)
    assert made.groups[0].scores["loss"].error is not None
    assert "(se " in to_markdown(made) and "loss_se" in to_csv(made)
    broken = tmp_path / "out" / "runs" / made.rows[0].run / "items.json"
    broken.write_text("{")
    assert read_items(broken.parent) == {}, "a damaged file counts as not kept"


def test_items_decide_what_three_seeds_alone_cannot():
    rng = np.random.default_rng(0)
    names = [str(n) for n in range(800)]
    difficulty = rng.normal(0, 3, 800)
    rights = {
        (variant, seed): difficulty + gain + rng.normal(0, 0.6, 800) > 0
        for variant, gain in (("a", 0.0), ("b", 0.5))
        for seed in range(3)
    }
    kept = {f"{variant}-{seed}": Items.of_values(names, {"accuracy": own}) for (variant, seed), own in rights.items()}
    scores = {name: [float(rights[name, seed].mean()) for seed in range(3)] for name in ("a", "b")}
    rows = made_up(scores, "a").rows
    gap = summarise(rows, ["accuracy"], "a", lambda row: {"": kept[row.run]})[1].differences["accuracy"]
    assert gap.basis == "seeds and items" and verdict_of(gap, "accuracy") == "better"
    other_rows = dataclasses.replace(kept["b-0"], ids=tuple(names[1:] + names[:1]))
    kept["b-0"] = other_rows
    alone = summarise(rows, ["accuracy"], "a", lambda row: {"": kept[row.run]})[1].differences["accuracy"]
    assert alone.basis == "seeds", "other rows are not compared row by row"


def test_a_table_of_many_comparisons_calls_fewer_of_them_better():
    gap = Difference.of([0.1, 0.14, 0.12])
    assert gap is not None and verdict_of(gap, "accuracy") == "better" and verdict_of(gap, "loss") == "worse"
    others = [Difference.of([0.1, -0.1, 0.02 * n]) for n in range(9)]
    corrected, *_ = correct([gap, *[other for other in others if other is not None]])
    assert corrected.comparisons == 10 and verdict_of(corrected, "accuracy") == "not told apart"
    assert (corrected.mean, corrected.p) == (gap.mean, gap.p)
    assert verdict_text(gap, "accuracy").endswith("] better") and verdict_text(corrected, "accuracy").endswith("]")


def test_equal_differences_and_one_seed_give_no_interval():
    for values in ([0.1, 0.1, 0.1], [0.1]):
        gap = Difference.of(values)
        assert gap is not None and gap.low is None and verdict_of(gap, "accuracy") == "no interval"
    assert "none is called better or worse" in explain_intervals([gap], "table")


def test_every_format_has_the_verdict_and_says_what_it_covers():
    made = made_up({"pissa": (0.5, 0.51, 0.52), "lora": (0.6, 0.611, 0.622)}, "pissa")
    markdown, latex, lines = to_markdown(made), to_latex(made), to_csv(made).splitlines()
    assert "+0.1010 [+0.0985, +0.1035] better" in markdown and "better" in latex
    for text in (markdown, latex):
        assert "other seeds on this test set, not other items" in text.replace("\\", "")
        assert "1 comparison of this table" in text
    cells = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    assert cells["accuracy_verdict"] == "better" and cells["accuracy_basis"] == "seeds"
    assert float(cells["accuracy_se"]) > 0 and float(cells["accuracy_difference_p"]) < 0.05

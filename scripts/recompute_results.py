"""Write the kept results again from their kept rows, after the statistics or the texts of the pages have changed.

    python scripts/recompute_results.py docs/results

Every study's table and every page is made from ``STUDY/table.json``. Figures stay. Two pages need what only the runs have (curves,
features); their texts outside the tables of this script stay, too, and the command names them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from balora.experiments.compare import Comparison, Row, summarise
from balora.experiments.compare.plan import format_value
from balora.experiments.compare.statistics import Difference, correct
from balora.experiments.compare.tables import is_loss, to_json, to_markdown
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request
from balora.experiments.reproduce.experiment import Study
from balora.experiments.reproduce.run import render_page
from balora.plots.forest import ForestLine, forest_plot

NEEDS_RUNS = ("figure2", "figure3")
"""Pages with parts that are made from the runs themselves."""


def read_comparison(path: Path) -> Comparison:
    """Read a kept ``table.json`` and take all statistics from its rows again."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row.from_dict(row) for row in content["rows"]]
    groups = summarise(rows, content["scores"], content["baseline"])
    kept = {key: content[key] for key in ("about", "notes", "baseline", "scores")}
    return Comparison(groups=groups, rows=rows, **kept)


def forest(results: Path, studies: Mapping[str, Mapping[str, tuple[Study, Comparison]]]) -> None:
    """Draw every difference in the main score of every study to its baseline, corrected for all of them together."""
    named: list[tuple[str, str, bool, Difference]] = []
    for experiment, found in studies.items():
        for study, made in found.values():
            for group in made.groups:
                if (gap := group.differences.get(study.score)) is not None:
                    label = " ".join([group.variant, *(format_value(value) for value in group.axes.values())])
                    named.append((f"{experiment}, {study.name}: {label}", study.score, is_loss(study.score), gap))
    corrected = correct([gap for *_, gap in named])
    panels = []
    for losses, title, axis in (
        (True, "Losses (below 0 is better)", "difference in the loss, nats per token"),
        (False, "Accuracies, F1 and correlations (above 0 is better)", "difference in the score"),
    ):
        lines = [
            ForestLine(label=label, mean=gap.mean, low=gap.low, high=gap.high)
            for (label, _, is_a_loss, _), gap in zip(named, corrected, strict=True)
            if is_a_loss is losses
        ]
        panels.append((title, axis, lines))
    forest_plot(panels, results / "forest")
    decided = sum(gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0) for gap in corrected)
    print(f"forest: {decided} of {len(corrected)} differences exclude 0 after a correction for all of them.")


def recompute(results: Path) -> list[str]:
    """Write tables and pages below ``results``; return the names of the pages that were left as they are."""
    left = []
    kept: dict[str, dict[str, tuple[Study, Comparison]]] = {}
    for name, experiment in EXPERIMENTS.items():
        comparisons = {}
        for study in experiment.small:
            path = results / name / study.name / "table.json"
            if path.is_file():
                made = read_comparison(path)
                path.write_text(to_json(made), encoding="utf-8")
                path.with_suffix(".md").write_text(to_markdown(made), encoding="utf-8")
                comparisons[study.name] = dataclasses.replace(made, baseline=study.baseline)
                kept.setdefault(name, {})[study.name] = (study, made)
        if comparisons and name in NEEDS_RUNS:
            left.append(name)
        elif comparisons:
            seeds = sorted({row.seed for made in comparisons.values() for row in made.rows})
            with tempfile.TemporaryDirectory() as scratch:
                asked = Request(
                    experiment=experiment, scale="small", output=Path(scratch), paths=Paths(), seeds=seeds
                )  # fmt: skip
                (results / name / "index.md").write_text(render_page(asked, comparisons), encoding="utf-8")
    forest(results, kept)
    page = results / "methods.md"
    text = page.read_text(encoding="utf-8")
    for name in ("methods-gsm8k", "methods-sst2"):
        made = read_comparison(results / f"{name}.json")
        (results / f"{name}.json").write_text(to_json(made), encoding="utf-8")
        text = _replace_tables(text, name, to_markdown(made))
    page.write_text(text, encoding="utf-8")
    return left


def _replace_tables(text: str, name: str, tables: str) -> str:
    """Replace what stands between the command that names a comparison's config and the link to its rows."""
    start = text.index("```\n", text.index(f"examples/{name}.yaml")) + len("```\n")
    end = text.index("\n([every run", start)
    return f"{text[:start]}\n{tables}{text[end:]}"


if __name__ == "__main__":
    if pages := recompute(Path(sys.argv[1])):
        print(
            f"The pages of {', '.join(pages)} need their runs and were left as they are; their studies' tables are new."
        )

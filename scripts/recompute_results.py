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
from pathlib import Path

from balora.experiments.compare import Comparison, Row, summarise
from balora.experiments.compare.tables import to_json, to_markdown
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request
from balora.experiments.reproduce.run import render_page

NEEDS_RUNS = ("figure2", "figure3")
"""Pages with parts that are made from the runs themselves."""


def read_comparison(path: Path) -> Comparison:
    """Read a kept ``table.json`` and take all statistics from its rows again."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row.from_dict(row) for row in content["rows"]]
    groups = summarise(rows, content["scores"], content["baseline"])
    kept = {key: content[key] for key in ("about", "notes", "baseline", "scores")}
    return Comparison(groups=groups, rows=rows, **kept)


def recompute(results: Path) -> list[str]:
    """Write tables and pages below ``results``; return the names of the pages that were left as they are."""
    left = []
    for name, experiment in EXPERIMENTS.items():
        comparisons = {}
        for study in experiment.small:
            path = results / name / study.name / "table.json"
            if path.is_file():
                made = read_comparison(path)
                path.write_text(to_json(made), encoding="utf-8")
                path.with_suffix(".md").write_text(to_markdown(made), encoding="utf-8")
                comparisons[study.name] = dataclasses.replace(made, baseline=study.baseline)
        if comparisons and name in NEEDS_RUNS:
            left.append(name)
        elif comparisons:
            seeds = sorted({row.seed for made in comparisons.values() for row in made.rows})
            with tempfile.TemporaryDirectory() as scratch:
                asked = Request(
                    experiment=experiment, scale="small", output=Path(scratch), paths=Paths(), seeds=seeds
                )  # fmt: skip
                (results / name / "index.md").write_text(render_page(asked, comparisons), encoding="utf-8")
    return left


if __name__ == "__main__":
    if pages := recompute(Path(sys.argv[1])):
        print(
            f"The pages of {', '.join(pages)} need their runs and were left as they are; their studies' tables are new."
        )

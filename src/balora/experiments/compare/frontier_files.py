"""Files of a frontier: figure (PNG, SVG, PDF), tables (Markdown, CSV), JSON, and a page of HTML."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

from balora.evaluation.significance.intervals import COVERAGE
from balora.experiments.compare.frontier import Estimate, Frontier, Reading
from balora.experiments.compare.rows import DRIFT
from balora.experiments.compare.screen import fit_table
from balora.experiments.compare.tables import Comparison, markdown_table, provenance_note
from balora.files import write_text
from balora.terminal import wrap

NAME = "frontier"


def write_frontier(frontier: Frontier, comparison: Comparison, directory: Path) -> list[Path]:
    """Write all files of a frontier into a directory; return their paths, the page last."""
    from balora.plots.frontier import Mark, frontier_figure  # slow to import
    from balora.plots.html import write_page

    path = directory / NAME
    figures = frontier_figure(
        {
            curve.name: [
                Mark(p.drift.mean, p.score.mean, _interval(p.drift), _interval(p.score), _value_text(p.value))
                for p in curve.points
            ]
            for curve in frontier.curves
        },
        path,
        x_label=_drift_label(frontier),
        y_label=f"{frontier.score} ({'less' if frontier.lower_is_better else 'more'} is better)",
        title=f"{frontier.score} against drift",
        x_levels=[r.level for r in frontier.readings if r.kind == "score"],
        y_levels=[r.level for r in frontier.readings if r.kind == "drift"],
        y_falls=frontier.lower_is_better,
    )
    notes = [
        _caption(frontier),
        *frontier.notes,
        *(f"{row.run} has no result: {row.reason}" for row in comparison.failures),
    ]
    about = provenance_note(comparison.about)
    points, readings = points_table(frontier), readings_table(frontier)
    sections = [f"# {frontier.score} against drift", f"![{NAME}]({NAME}.png)", "## Points", markdown_table(*points)]
    if readings[1]:
        sections += ["## Read off the curves", markdown_table(*readings)]
    write_text(path.with_suffix(".md"), "\n\n".join([*sections, *notes, about]) + "\n")
    write_text(path.with_suffix(".csv"), to_csv(frontier))
    write_text(path.with_suffix(".json"), to_json(frontier))
    image = base64.b64encode(figures[1].read_bytes()).decode()
    page = write_page(
        path.with_suffix(".html"), "frontier.html.j2", package="balora.experiments.compare",
        title=f"{frontier.score} against drift", image=f"data:image/svg+xml;base64,{image}", points=points,
        readings=readings, notes=notes, about=about,
    )  # fmt: skip
    return [*figures, *(path.with_suffix(suffix) for suffix in (".md", ".csv", ".json")), page]


def points_table(frontier: Frontier) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the points of every curve."""
    header = ["method", "knob", "value", "seeds", _drift_label(frontier), frontier.score]
    return header, [
        [
            curve.variant, curve.knob or "-", _value_text(point.value) or "-", str(len(point.seeds)),
            estimate_text(point.drift), estimate_text(point.score),
        ]
        for curve in frontier.curves for point in curve.points
    ]  # fmt: skip


def readings_table(frontier: Frontier) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the values at equal drift and at equal score."""
    header = ["at", "curve", "value", "remark"]
    return header, [_reading_line(frontier, reading) for reading in frontier.readings]


def plain_lines(frontier: Frontier) -> list[str]:
    """Return points and readings in aligned columns within the width of the terminal."""
    lines: list[str] = []
    width = shutil.get_terminal_size().columns
    for header, cells in (points_table(frontier), readings_table(frontier)):
        if cells:
            lines += [*fit_table(header, cells, 2, width), ""]
    return [*lines, *(line for note in frontier.notes for line in wrap(note, width).split("\n"))]


def to_csv(frontier: Frontier) -> str:
    """Write one line per point and one per reading, with unrounded numbers."""
    out = io.StringIO()
    parts = ("mean", "low", "high", "n")
    names = [
        "kind",
        "curve",
        "method",
        "knob",
        "value",
        *(f"{of}_{part}" for of in ("drift", "score") for part in parts),
    ]
    writer = csv.DictWriter(out, [*names, "remark"], lineterminator="\n")
    writer.writeheader()
    for curve in frontier.curves:
        for point in curve.points:
            line = {
                "kind": "point",
                "curve": curve.name,
                "method": curve.variant,
                "knob": curve.knob,
                "value": point.value,
            }
            writer.writerow({**line, **_columns("drift", point.drift), **_columns("score", point.score)})
    for reading in frontier.readings:
        level = "drift" if reading.kind == "score" else "score"
        line = {"kind": f"at equal {level}", "curve": reading.curve, f"{level}_mean": reading.level}
        writer.writerow({**line, **_columns(reading.kind, reading.estimate), "remark": reading.remark})
    return out.getvalue()


def to_json(frontier: Frontier) -> str:
    """Write curves with every seed, readings and notes."""
    return json.dumps(dataclasses.asdict(frontier), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def estimate_text(estimate: Estimate | None) -> str:
    """Format an estimate as ``0.0123 [0.0101, 0.0145]``."""
    if estimate is None:
        return "-"
    interval = _interval(estimate)
    return f"{estimate.mean:.4g}" + ("" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]")


def _reading_line(frontier: Frontier, reading: Reading) -> list[str]:
    at, value = ("drift", frontier.score) if reading.kind == "score" else (frontier.score, "drift")
    found = f"{value} {estimate_text(reading.estimate)}" if reading.estimate else "cannot be read off"
    return [f"{at} {reading.level:.4g}", reading.curve, found, reading.remark]


def _columns(of: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    values = (estimate.mean, estimate.low, estimate.high, estimate.count)
    return {f"{of}_{part}": value for part, value in zip(("mean", "low", "high", "n"), values, strict=True)}


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _value_text(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _drift_label(frontier: Frontier) -> str:
    return "drift (nats per token)" if frontier.drift == DRIFT else frontier.drift


def _caption(frontier: Frontier) -> str:
    drift = f"The drift is the score {frontier.drift}."
    if frontier.drift == DRIFT:
        drift = "Drift is KL(pre-trained ‖ tuned) on anchors that no run was trained on, the same for all methods of a seed."
    return (
        f"Mean over seeds; in brackets Student's {COVERAGE:.0%} interval. A value at a level is read off for each seed on its "
        "own curve, straight between neighbouring points (over the logarithm of the drift), and averaged; outside a curve's "
        f"range nothing is read off. {drift}"
    )

"""The report of an audit: one HTML page that loads nothing, and a summary in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.auditing.sentences import format_number
from balora.auditing.verdicts import QUESTIONS, format_interval, judge, question_of
from balora.plots.html import write_page
from balora.plots.inline_svg import InlineFigure, interval_figure, line_figure

PAGE = "audit.html"
_TITLES = {
    "drift": "Drift", "collapse": "Collapse", "noise": "Noise in the training data", "bias": "Social bias", "weights": "Weights",
    "tasks": "Tasks",
}  # fmt: skip
_LEVELS = (0.01, 0.05, 0.2, 0.5, 1.5)
"""Divergences in nats from which a token has the next stronger colour."""


def audit_page(path: Path, result: Mapping[str, Any]) -> Path:
    """Write the page of an audit's result."""
    return write_page(
        path,
        "audit.html.j2",
        package="balora.auditing",
        result=result,
        evidence={
            "samples_drift": None,
            "drift": None,
            "continuations": None,
            "samples": None,
            "rows": None,
            "weights": None,
            **result["evidence"],
        },
        questions=[_question(name, result) for name in QUESTIONS],
        figures=_figures(result),
        levels=_LEVELS,
        level=lambda kl: 0 if kl is None else sum(kl >= limit for limit in _LEVELS),
        number=format_number,
        against=result.get("against"),
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Return the answers and the measures as Markdown."""
    lines = [
        f"# What fine-tuning changed: {result['tuned']}",
        "",
        f"Base: {result['base']}. Task: {result['task']}.",
        "",
    ]
    lines += ["| question | verdict | number |", "|---|---|---|"]
    lines += [
        f"| {a['asks']} | **{a['verdict']}** | {_cell(a['sentence']) or '-'} |" for a in result["answers"].values()
    ]
    for name in QUESTIONS:
        rows = _question(name, result)["rows"]
        if rows:
            lines += [
                "",
                f"## {_TITLES[name]}",
                "",
                "| measure | base | tuned | change or value | of |",
                "|---|---|---|---|---|",
            ]
            lines += [
                f"| {_cell(r['label'])} | {r['base']} | {r['tuned']} | {r['change']} | {r['count']} |" for r in rows
            ]
    if result["not_measured"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in result["not_measured"].items()]
    lines += ["", "## Notes", "", *(f"- {note}" for note in result["notes"]), "- Brackets are 95 % intervals."]
    return "\n".join(lines) + "\n"


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the answers as lines of text: verdicts first, then the sentence of each that was measured."""
    measured = {name: a for name, a in result["answers"].items() if a["verdict"] != "not measured"}
    rest = [name for name in result["answers"] if name not in measured]
    lines = [
        line for name, a in measured.items() for line in (f"{name}: {a['verdict']}", f"  {a['asks']} {a['sentence']}")
    ]
    return [*lines, *([f"not measured: {', '.join(rest)}"] if rest else [])]


def _question(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return one question with its answer and the rows of its table."""
    other = (result.get("against") or {}).get("measures", {})
    rows = []
    for key, measure in result["measures"].items():
        if question_of(key) != name:
            continue
        compared = measure.get("value") or measure.get("change")
        rows.append({
            "key": key,
            "label": measure["label"] + (" (on its own samples)" if key.startswith("samples") else ""),
            "unit": measure["unit"],
            "base": _side(measure, "base"),
            "tuned": _side(measure, "tuned"),
            "change": "-" if not compared else format_interval(compared, signed=measure.get("value") is None),
            "count": f"{measure['count']:,} {measure['of']}",
            "verdict": judge(key, measure) or "",
            "against": describe_short(other[key]) if key in other else "-",
        })  # fmt: skip
    return {"name": name, "title": _TITLES[name], "answer": result["answers"][name], "rows": rows}


def describe_short(measure: Mapping[str, Any]) -> str:
    """Return the number that compares another tuned model with its base."""
    compared = measure.get("value") or measure.get("change")
    return "-" if not compared else format_interval(compared, signed=measure.get("value") is None)


def _side(measure: Mapping[str, Any], side: str) -> str:
    return format_interval(measure[side]) if measure.get(side) else "-"


def _figures(result: Mapping[str, Any]) -> list[InlineFigure]:
    """Draw the spectra of the matrices that changed most, and the sizes of the changes."""
    rows = result["evidence"].get("weights") or []
    changed = [row for row in rows if row["spectrum"]][:4]
    figures = []
    if changed:
        curves = [(_short(row["matrix"]), list(range(1, len(row["spectrum"]) + 1)), row["spectrum"]) for row in changed]
        figures.append(line_figure(curves, "singular values of ΔW", "number", log=True))
    sizes = [row for row in rows if row["relative"] > 0][:12]
    if sizes:
        entries = [(_short(row["matrix"]), row["relative"], None, None) for row in sizes]
        figures.append(interval_figure("‖ΔW‖ / ‖W‖, the matrices that changed most", entries, level=0.0))
    return figures


def _short(name: str) -> str:
    """Return the layer and the module of a matrix's name.

    Example:
        >>> _short("model.layers.3.self_attn.q_proj.weight")
        '3.q_proj'
    """
    parts = name.removesuffix(".weight").split(".")
    layer = next((part for part in parts if part.isdigit()), None)
    return parts[-1] if layer is None else f"{layer}.{parts[-1]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

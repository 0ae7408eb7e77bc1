"""A comparison as tables: Markdown, CSV, JSON, LaTeX. All four are made from the same groups, so they cannot disagree."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare.plan import shown
from balora.experiments.compare.rows import Row
from balora.experiments.compare.stats import COVERAGE, RESAMPLES, Difference, Group, Spread

FEW = 5
"""Fewer pairs than this, and the bootstrap interval carries a warning."""
CAPTION = (
    "Mean ± standard deviation over seeds. Time is that of training; memory is the peak of the run's process; trainable counts "
    "the values that learn."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything a table is made of."""

    groups: Sequence[Group]
    rows: Sequence[Row]
    scores: Sequence[str]
    """Names of the scores shown, in order."""
    baseline: str | None
    about: Mapping[str, Any]
    """Config, seeds, versions, hardware, commit, data digests: where the numbers come from."""
    notes: Sequence[str] = ()
    """What a reader has to know."""
    folder: Path | None = None
    """Where the tables are."""

    @property
    def axes(self) -> list[str]:
        """Every key that varies."""
        return list(dict.fromkeys(key for group in self.groups for key in group.axes))

    @property
    def failures(self) -> list[Row]:
        """The runs without a result."""
        return [row for row in self.rows if row.status != "finished"]


def to_markdown(made: Comparison) -> str:
    """The table, the differences to the baseline, the runs that failed, and where it all comes from."""
    parts = [markdown_table(*main_table(made))]
    parts.append(CAPTION)
    if made.baseline is not None:
        parts += [
            f"Difference to {made.baseline}, paired by seed",
            markdown_table(*difference_table(made)),
            interval_note(made),
        ]
    if made.failures:
        failed = [f"- {row.run}: {row.reason}" for row in made.failures]
        parts.append("Runs without a result:\n\n" + "\n".join(failed))
    parts += list(made.notes)
    return "\n\n".join([*parts, source_note(made.about)]) + "\n"


def to_latex(made: Comparison) -> str:
    """The same tables as `tabular` environments; runs that failed are comments."""
    parts = [_latex(*main_table(made))]
    if made.baseline is not None:
        parts += [f"% Difference to {made.baseline}, paired by seed.", _latex(*difference_table(made))]
    parts += [f"% {row.run}: {row.reason}" for row in made.failures]
    parts += [f"% {note}" for note in made.notes]
    return "\n".join([*parts, f"% {source_note(made.about)}"]) + "\n"


def to_csv(made: Comparison) -> str:
    """One line per row of the table, numbers unrounded."""
    out = io.StringIO()
    names = ["variant", *made.axes, "finished", "planned"]
    for name in [*made.scores, "seconds", "peak_memory_mib", "trainable"]:
        names += [f"{name}_mean", f"{name}_std", f"{name}_n"]
    if made.baseline is not None:
        for name in made.scores:
            names += [f"{name}_difference", f"{name}_difference_low", f"{name}_difference_high", f"{name}_pairs"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for group in made.groups:
        line: dict[str, Any] = {"variant": group.variant, "finished": group.finished, "planned": group.planned}
        line |= {key: shown(value) for key, value in group.axes.items()}
        measured = {**group.scores, **_costs(group)}
        for name, spread in measured.items():
            if spread is not None:
                line |= {f"{name}_mean": spread.mean, f"{name}_std": spread.deviation, f"{name}_n": spread.count}
        for name, gap in group.differences.items():
            line |= {f"{name}_difference": gap.mean, f"{name}_pairs": gap.pairs}
            line |= {f"{name}_difference_low": gap.low, f"{name}_difference_high": gap.high}
        writer.writerow(line)
    return out.getvalue()


def to_json(made: Comparison) -> str:
    """The whole comparison, every row included."""
    whole = {
        "about": made.about,
        "notes": list(made.notes),
        "baseline": made.baseline,
        "scores": list(made.scores),
        "groups": [dataclasses.asdict(group) for group in made.groups],
        "rows": [row.to_dict() for row in made.rows],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain_lines(made: Comparison) -> list[str]:
    """The table for a screen, in columns."""
    header, cells = main_table(made)
    lines = [header, *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def main_table(made: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines: every group with its scores and its cost."""
    header = ["method", *made.axes, "runs", *made.scores, "time (s)", "memory (MiB)", "trainable"]
    return header, [_cells(made, group) for group in made.groups]


def _cells(made: Comparison, group: Group) -> list[str]:
    axes = [shown(group.axes[key]) if key in group.axes else "-" for key in made.axes]
    scores = [cell_text(group.scores.get(name), group.finished, 4) for name in made.scores]
    seconds, memory = (cell_text(s, group.finished, 0, significant=3) for s in (group.seconds, group.peak_memory_mib))
    trainable = "-" if group.trainable is None else f"{group.trainable.mean:,.0f}"
    return [group.variant, *axes, f"{group.finished}/{group.planned}", *scores, seconds, memory, trainable]


def difference_table(made: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines: every group's differences to the baseline, with their intervals."""
    others = [group for group in made.groups if group.variant != made.baseline]
    lines = [
        [
            group.variant,
            *(shown(group.axes[key]) if key in group.axes else "-" for key in made.axes),
            *(difference_text(group.differences.get(name)) for name in made.scores),
        ]
        for group in others
    ]
    return ["method", *made.axes, *made.scores], lines


def interval_note(made: Comparison) -> str:
    """What the brackets hold, and how far to trust them."""
    fewest = min((d.pairs for group in made.groups for d in group.differences.values()), default=0)
    if all(d.low is None for group in made.groups for d in group.differences.values()):
        return "One pair has no interval: take more seeds."
    text = f"In brackets: the {COVERAGE:.0%} percentile bootstrap interval of the mean difference, {RESAMPLES:,} resamples."
    if 0 < fewest < FEW:
        text += (
            f" With {fewest} pair{'' if fewest == 1 else 's'} it is too narrow: read it as the range the seeds span."
        )
    return text


def _costs(group: Group) -> dict[str, Spread | None]:
    return {"seconds": group.seconds, "peak_memory_mib": group.peak_memory_mib, "trainable": group.trainable}


def cell_text(spread: Spread | None, of: int, digits: int = 4, significant: int | None = None) -> str:
    """``0.8230 ± 0.0041``; with ``(2 of 3)`` where some finished runs have no such number."""
    if spread is None:
        return "-"
    if significant is not None and spread.mean < 10 ** (significant - 1):
        digits = 1
    text = f"{spread.mean:,.{digits}f}"
    text += "" if spread.deviation is None else f" ± {spread.deviation:,.{digits}f}"
    return text if spread.count == of else f"{text} ({spread.count} of {of})"


def difference_text(gap: Difference | None) -> str:
    """``+0.0120 [+0.0050, +0.0190]``."""
    if gap is None:
        return "-"
    return f"{gap.mean:+.4f}" + ("" if gap.low is None else f" [{gap.low:+.4f}, {gap.high:+.4f}]")


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _latex(header: list[str], lines: list[list[str]]) -> str:
    body = "\n".join(" & ".join(map(_tex, line)) + r" \\" for line in lines)
    top = " & ".join(map(_tex, header)) + r" \\"
    columns = "l" * len(header)
    return f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{top}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return re.sub(r"[\\~^±&%$#_{}]", lambda m: special.get(m[0], "\\" + m[0]), text)


def source_note(about: Mapping[str, Any]) -> str:
    """One paragraph on where the numbers come from."""
    made = about["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    commit = made.get("commit")
    code = f"commit {commit['id'][:12]}{' with changes' if commit['dirty'] else ''}, " if commit else ""
    device = made["hardware"]
    digests = ", ".join(digest[:12] for digest in about["data_digests"]) or "none"
    at_a_time = "as many runs as fit" if about["jobs"] is None else f"{about['jobs']} run(s)"
    return (
        f"Made {made['time']} by balora compare: {code}{versions}; {device['device']}, {device['cores']} cores, {at_a_time} at a "
        f"time, engine {about['engine']}; seeds {', '.join(map(str, about['seeds']))}; data digest {digests}."
    )

"""`balora report`: one page for a run, a folder of runs or a comparison."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from balora.checkpoints.provenance import provenance
from balora.errors import BALoraError
from balora.plots.html import write
from balora.report.findings import warnings_of
from balora.report.plots import Curves, Panel, curve_panel, part_plots
from balora.report.provenance_table import origins_of, summary_of
from balora.report.results import Table, comparison_of, dots_of, require_baseline, settings_of, tables_of
from balora.report.samples import MAX_NEW_TOKENS, Sample, samples_of
from balora.report.source import Section, read_sections

PAGE = "report.html"
_FIGURES = {".svg": "image/svg+xml", ".png": "image/png"}
_LARGEST = 4 * 2**20
_UNITS = {"classification": "cross-entropy, nats", "regression": "squared error"}
_HIDDEN = ("output", "resume", "training.disable_tqdm", "training.report_to", "training.run_name")
_SHOWN_FIRST = ("model", "task", "method", "regularization", "data", "seed", "training")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _View:
    """A section as the template sees it."""

    section: Section
    kind: str
    warnings: list[str]
    tables: list[Table]
    dots: list[Panel]
    curves: list[Panel]
    parts: list[Panel]
    differing: Table | None
    shared: dict[str, list[tuple[str, str]]]
    figures: list[tuple[str, str]]
    samples: list[Sample]
    origins: tuple[Table, list[tuple[str, str]]]
    summary: list[tuple[str, str]]


def report(
    folder: str | Path,
    *,
    output: str | Path | None = None,
    baseline: str | None = None,
    samples: int = 0,
    say: Say = lambda line: None,
) -> Path:
    """Write the page of a folder.

    Args:
        folder: A run's, a comparison's, or one that holds such.
        output: The HTML file; default ``report.html`` in the folder.
        baseline: The line of the table that differences are taken to, in each section that has it; default the
            comparison's own.
        samples: Prompts to have continued by the pre-trained model and by every method; with 0 no model is loaded.
        say: Takes lines for the user.

    Returns:
        The file written.

    Raises:
        BALoraError: The folder holds no run and no comparison, a file in it is damaged, or there is no such baseline.
    """
    folder = Path(folder)
    path = Path(output) if output is not None else folder / PAGE
    if path.is_dir():
        raise BALoraError(f"{path} is a folder; --output names the HTML file.")
    sections = read_sections(folder)
    if baseline is not None:
        require_baseline(folder, sections, baseline)
    views = [_view(section, baseline, samples, say) for section in sections]
    title = folder.resolve().name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder that holds comparisons may have figures of its own over them all.
        own = [] if any(section.folder == folder for section in sections) else figures_in(folder)
        return write(
            path, "report.html.j2", title=title, views=views, figures=own, about=provenance(), max_new_tokens=MAX_NEW_TOKENS
        )  # fmt: skip
    except OSError as error:
        raise BALoraError(f"{path} cannot be written: {error.strerror or error}. Choose another --output.") from error


def figures_in(folder: Path) -> list[tuple[str, str]]:
    """Name and content (a data URI) of the figures that lie in a folder, each in one form, drawn lines before pixels."""
    found: dict[str, Path] = {}
    for suffix in _FIGURES:
        for path in sorted(folder.glob(f"*{suffix}")):
            if path.stat().st_size <= _LARGEST:
                found.setdefault(path.stem, path)
    return [
        (stem, f"data:{_FIGURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}")
        for stem, path in sorted(found.items())
    ]


def _view(section: Section, baseline: str | None, samples: int, say: Say) -> _View:
    made = comparison_of(section, baseline)
    shown, problems = samples_of(section.runs, samples, say) if samples > 0 else ([], [])
    several = len(section.runs) > 1
    curves: Curves = [(run.label, run.lines) for run in section.runs]
    differing, shared = settings_of(section, (*_HIDDEN, "seed") if several else _HIDDEN)
    return _View(
        section=section,
        kind=_kind(section),
        warnings=[*warnings_of(section), *problems],
        tables=tables_of(section, made),
        dots=dots_of(made),
        curves=_curves(section, curves),
        parts=part_plots(curves),
        differing=differing,
        shared=_by_part(shared),
        figures=figures_in(section.folder),
        samples=shown,
        origins=origins_of(section.runs),
        summary=summary_of(section),
    )


def _kind(section: Section) -> str:
    if section.comparison is not None:
        return f"a comparison of {len(section.rows)} runs"
    return "one run" if len(section.runs) == 1 else f"{len(section.runs)} runs"


def _curves(section: Section, curves: Curves) -> list[Panel]:
    """The task loss, and what was evaluated more than once on the way."""
    tasks = {run.task for run in section.runs}
    unit = _UNITS.get(tasks.pop(), "nats per target token") if len(tasks) == 1 else "unlike tasks"
    panels = [curve_panel(curves, "task", f"task loss ({unit})")]
    if any(run.lines for run in section.runs) and panels == [None]:
        panels = [curve_panel(curves, "loss", "training loss")]
    panels.append(curve_panel(curves, "grad_norm", "gradient norm"))
    for name in dict.fromkeys(f"eval_{name}" for run in section.runs for name in run.row.scores):
        if any(sum(name in line for line in lines) > 1 for _, lines in curves):
            panels.append(curve_panel(curves, name, f"evaluation: {name.removeprefix('eval_')}"))
    return [panel for panel in panels if panel is not None]


def _by_part(shared: Sequence[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Settings by the section of the config they stand in."""
    parts: dict[str, list[tuple[str, str]]] = {}
    order = {name: place for place, name in enumerate(_SHOWN_FIRST)}
    for key, value in sorted(shared, key=lambda item: order.get(item[0].split(".")[0], len(order))):
        head, dot, rest = key.partition(".")
        parts.setdefault(head if dot else "run", []).append((rest if dot else key, value))
    return parts

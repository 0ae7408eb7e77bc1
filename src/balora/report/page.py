"""`balora report`: one HTML page for a run, a directory of runs, or a comparison."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import provenance
from balora.errors import BALoraError
from balora.experiments.compare.evaluation import Say
from balora.plots.html import write_page
from balora.plots.inline_svg import Curves, InlineFigure, curve_figure, regularizer_figures, single_values
from balora.plots.style import TERMS
from balora.report import tables
from balora.report.findings import find_warnings
from balora.report.samples import MAX_NEW_TOKENS, generate_samples
from balora.report.sections import Section, read_sections

PAGE = "report.html"
_MIME_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
"""MIME types of figure files. If a figure has a PNG and an SVG file, the page shows the SVG."""
_MAX_FIGURE_BYTES = 4 * 2**20
_LOSS_UNITS = {"classification": "cross-entropy, nats", "regression": "squared error"}
_HIDDEN_SETTINGS = ("output", "resume", "training.disable_tqdm", "training.report_to", "training.run_name")
_FIRST_SETTINGS = ("model", "task", "method", "regularization", "data", "seed", "training")


def report(
    folder: str | Path,
    *,
    output: str | Path | None = None,
    baseline: str | None = None,
    samples: int = 0,
    say: Say = lambda line: None,
) -> Path:
    """Write a page about the runs in a directory.

    Args:
        folder: Directory of a run or a comparison, or one that contains such directories.
        output: HTML file to write; default ``report.html`` in the directory.
        baseline: Configuration to take differences to, in every section that has it; default the comparison's own baseline.
        samples: Number of prompts that the pre-trained model and every method answer; with 0 no model is loaded.
        say: Callback for lines to the user.

    Returns:
        Path of the page.

    Raises:
        BALoraError: The directory contains no run and no comparison, a file in it is damaged, or the baseline does not exist.
    """
    directory = Path(folder)
    path = directory / PAGE if output is None else Path(output)
    if path.is_dir():
        raise BALoraError(f"{path} is a directory. Give the name of the HTML file with --output.")
    sections = read_sections(directory)
    if baseline is not None:
        tables.require_baseline(directory, sections, baseline)
    values = {
        "title": directory.resolve().name,
        "sections": [_section_values(section, baseline, samples, say) for section in sections],
        # A directory of comparisons may have figures that cover all comparisons.
        "files": [] if any(section.directory == directory for section in sections) else read_figures(directory),
        "about": provenance(),
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_page(path, "report.html.j2", package="balora.report", **values)
    except OSError as error:
        raise BALoraError(f"{path} cannot be written: {error.strerror or error}. Choose another --output.") from error


def read_figures(directory: Path) -> list[tuple[str, str]]:
    """Read the figure files of a directory, up to 4 MiB each, as pairs of name and data URI."""
    paths = [path for suffix in _MIME_TYPES for path in directory.glob(f"*{suffix}")]
    found = {path.stem: path for path in paths if path.stat().st_size <= _MAX_FIGURE_BYTES}
    return [
        (stem, f"data:{_MIME_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}")
        for stem, path in sorted(found.items())
    ]


def _section_values(section: Section, baseline: str | None, sample_count: int, say: Say) -> dict[str, Any]:
    """Collect the template's variables for one section."""
    comparison = tables.compare_rows(section, baseline)
    samples, problems = generate_samples(section.runs, sample_count, say) if sample_count > 0 else ([], [])
    hidden = _HIDDEN_SETTINGS if len(section.runs) < 2 else (*_HIDDEN_SETTINGS, "seed")
    differing, common = tables.settings_tables(section, hidden)
    curves: Curves = [(run.label, run.lines) for run in section.runs]
    runs = "one run" if len(section.rows) == 1 else f"{len(section.rows)} runs"
    return {
        "title": section.title,
        "kind": runs if section.comparison is None else f"a comparison of {runs}",
        "summary": tables.summary(section),
        "warnings": [*find_warnings(section), *problems],
        "tables": tables.score_tables(section, comparison),
        "score_figures": tables.score_figures(comparison),
        "curves": _curve_figures(section, curves),
        "regularizers": regularizer_figures(curves),
        "once": _logged_once(section, curves),
        "files": read_figures(section.directory),
        "samples": samples,
        "differing": differing,
        "common": _by_config_section(common),
        "provenance": tables.provenance_tables(section.runs),
    }


def _curve_figures(section: Section, curves: Curves) -> list[InlineFigure]:
    """Draw the task loss, the gradient norm, and every score that was evaluated more than once during training."""
    tasks = {run.task for run in section.runs}
    unit = _LOSS_UNITS.get(tasks.pop(), "nats per target token") if len(tasks) == 1 else "different tasks"
    loss = curve_figure(curves, "task", f"task loss ({unit})") or curve_figure(curves, "loss", "training loss")
    figures = [loss, curve_figure(curves, "grad_norm", "gradient norm")]
    for score in dict.fromkeys(name for run in section.runs for name in run.row.scores):
        key = f"eval_{score}"
        if any(sum(key in line for line in lines) > 1 for _, lines in curves):
            figures.append(curve_figure(curves, key, f"evaluation: {score}"))
    return [figure for figure in figures if figure is not None]


def _logged_once(section: Section, curves: Curves) -> str:
    """Say which values were logged once in training and therefore have no curve; empty if there are none."""
    keys = ["task", "grad_norm", *TERMS]
    if not any("task" in line for _, lines in curves for line in lines):
        keys[0] = "loss"
    once = {key: single_values(curves, key) for key in keys}
    texts = [
        f"{key} {tables.list_some((f'{value:.4g} ({label}, step {step})' for label, step, value in found), 4)}"
        for key, found in once.items()
        if found
    ]
    return f"Logged once, which is no curve: {'; '.join(texts)}." if texts else ""


def _by_config_section(settings: Sequence[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Group settings by their section of the config."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    order = {name: number for number, name in enumerate(_FIRST_SETTINGS)}
    for key, value in sorted(settings, key=lambda item: order.get(item[0].split(".")[0], len(order))):
        head, dot, rest = key.partition(".")
        grouped.setdefault(head if dot else "run", []).append((rest if dot else key, value))
    return grouped

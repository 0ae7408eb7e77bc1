"""A comparison on a terminal: scores, the best, and differences, each within the width of the screen."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from balora.experiments.compare.best import Best, describe_best
from balora.experiments.compare.plan import configuration_label
from balora.experiments.compare.statistics import Group
from balora.experiments.compare.tables import Comparison, difference_text, interval_note, main_table, verdict_of
from balora.terminal import printable, wrap

_GAP = "  "


def screen_lines(comparison: Comparison, best: Mapping[str, Best] | None = None, width: int | None = None) -> list[str]:
    """Format a comparison for a terminal.

    Args:
        comparison: Results to show.
        best: Best configuration of each score, from `find_best`.
        width: Columns; default those of the terminal.

    Returns:
        Lines. A table that is wider than the screen becomes several with the same first columns. Only a single cell that is
        wider than the screen makes a longer line.
    """
    width = width or shutil.get_terminal_size().columns
    lines = fit_table(*main_table(comparison), 1 + len(comparison.axes), width)
    if best:
        lines += ["", *(line for text in describe_best(comparison, best) for line in wrap(text, width).split("\n"))]
    if comparison.baseline is not None and any(group.differences for group in comparison.groups):
        lines += ["", f"Difference to {comparison.baseline}, paired by seed", *_differences(comparison, width)]
        lines += wrap(interval_note(comparison), width).split("\n")
    return [printable(line) for line in lines]


def _differences(comparison: Comparison, width: int) -> list[str]:
    """Make one line for each score and configuration: a table with a column for each score would be too wide."""
    groups = [group for group in comparison.groups if group.differences]
    lines = [
        [score, _label(group), difference_text(group.differences[score]), verdict_of(group.differences[score], score)]
        for score in comparison.scores
        for group in groups
        if score in group.differences
    ]
    return fit_table(["score", "method", "difference", "verdict"], lines, 2, width)


def fit_table(header: Sequence[str], lines: Sequence[Sequence[str]], fixed: int, width: int) -> list[str]:
    """Align the columns of a table; if it is wider than ``width``, split it into tables with the same ``fixed`` first columns.

    Example:
        >>> fit_table(["a", "b", "c"], [["1", "22222", "33333"]], 1, 9)
        ['a  b', '1  22222', '', 'a  c', '1  33333']
    """
    table = [header, *lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    first = list(range(fixed))
    blocks: list[list[int]] = [list(first)]
    for column in range(fixed, len(header)):
        wanted = sum(widths[n] + len(_GAP) for n in blocks[-1]) + widths[column]
        if wanted > width and len(blocks[-1]) > fixed:
            blocks.append(list(first))
        blocks[-1].append(column)
    made = []
    for number, block in enumerate(blocks):
        made += [""] if number else []
        made += [_GAP.join(line[n].ljust(widths[n]) for n in block).rstrip() for line in table]
    return made


def _label(group: Group) -> str:
    return configuration_label(group.variant, group.axes)

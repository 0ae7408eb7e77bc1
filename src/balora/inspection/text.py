"""An inspection as lines for the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from balora.inspection.inspect import Finding, Inspection, Part, Shown, histogram, quantiles
from balora.inspection.pieces import Piece
from balora.terminal import bar, printable

_LEARNT, _OTHER, _BOLD, _END = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
_NAME = 14
"""Width of the names of counts."""


def as_lines(found: Inspection, *, width: int = 80, colour: bool = False, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of an inspection.

    Args:
        found: The inspection.
        width: Columns of the screen.
        colour: Whether to colour the tokens that are learnt. Otherwise lines marked ``|`` are learnt and ``.`` not.
        encoding: Encoding of the screen, which decides how bars are drawn.
    """
    for part in found.parts:
        yield from _counts(part, found, width)
        yield ""
        yield from _lengths(part, width, encoding)
        yield ""
    yield from _overlap(found, width)
    yield from _labels(found, width, encoding)
    for note in found.notes:
        yield from _wrapped(f"Note: {note}", width)
    if found.notes:
        yield ""
    if found.train.shown or found.train.odd:
        legend = f"{_LEARNT}learnt{_END}, {_OTHER}not learnt{_END}" if colour else "| learnt, . not learnt"
        yield (
            f"Examples as the model sees them ({legend}):"
            if found.learns_tokens
            else "Examples as the model sees them:"
        )
    for shown in (*found.train.shown, *found.train.odd):
        yield ""
        yield from _example(shown, width, colour)


def _counts(part: Part, found: Inspection, width: int) -> Iterator[str]:
    more = f", {part.examples:,} examples" if part.examples != part.rows else ""
    yield from _wrapped(f"{part.name.capitalize()}: {part.rows:,} rows{more} from {part.source}", width)
    if part.examples and found.learns_tokens:
        learnt = f"{part.learnt:,} learnt"
        if found.config.task != "seq2seq":
            learnt += f" ({part.learnt / max(1, part.tokens):.0%})"
        yield _named("tokens", f"{part.tokens:,}, {part.tokens / part.examples:.0f} an example; {learnt}")
    elif part.examples:
        yield _named("tokens", f"{part.tokens:,}, {part.tokens / part.examples:.0f} an example")
    yield from _finding("cut", part.cut, part, width)
    yield from _finding("left out", part.left_out, part, width)
    for name, repeated in (("repeated", part.identical), ("contradicting", part.contradicting)):
        what = {
            "repeated": "equal to an earlier row",
            "contradicting": "with the input of an earlier row and another answer",
        }
        yield from _named_lines(name, _places(repeated, what[name]), width)


def _finding(name: str, findings: dict[str, Finding], part: Part, width: int) -> Iterator[str]:
    if not findings:
        yield _named(name, "none")
    for why, finding in findings.items():
        share = finding.count / max(1, len(part.lengths))
        yield from _named_lines(name, f"{finding.count:,} ({share:.1%}): {why}; {', '.join(finding.places[:3])}", width)


def _places(finding: Finding, what: str) -> str:
    if not finding.count:
        return "none"
    more = ", ..." if finding.count > 3 else ""
    return f"{finding.count:,} {what}: {', '.join(finding.places[:3])}{more}"


def _lengths(part: Part, width: int, encoding: str | None) -> Iterator[str]:
    if not part.lengths:
        return
    values = ", ".join(f"{name} {length:,}" for name, length in quantiles(part.lengths).items())
    yield from _named_lines("length", f"{values}; limit {part.limit.tokens:,} ({part.limit.origin})", width)
    bins = histogram(part.lengths)
    largest = max(count for _, _, count in bins)
    for low, high, count in bins:
        beyond = " >" if low > part.limit.tokens else ""
        room = max(5, width - 2 - 15 - 10)
        yield f"  {f'{low:,}-{high:,}' + beyond:>13} {count:>7,} {bar(count, largest, room, encoding)}".rstrip()


def _overlap(found: Inspection, width: int) -> Iterator[str]:
    if found.eval is None:
        yield from _wrapped("No rows are kept for evaluation (data.eval), so the run has no score on new data.", width)
    else:
        yield from _wrapped("Evaluation rows that are training rows:", width)
        yield from _named_lines("equal", _places(found.overlap, "equal rows"), width)
        yield from _named_lines("same input", _places(found.similar, "apart from case and spaces"), width)
    yield ""


def _labels(found: Inspection, width: int, encoding: str | None) -> Iterator[str]:
    for part in found.parts:
        if part.labels:
            yield f"Classes of the {part.name} rows:"
            total, largest = sum(part.labels.values()), max(part.labels.values())
            longest = min(24, max(len(name) for name in part.labels))
            for name, count in part.labels.most_common():
                shown = f"  {printable(name)[:longest]:<{longest}} {count:>8,} {count / max(1, total):>6.1%} "
                yield (shown + bar(count, largest, max(5, width - len(shown)), encoding)).rstrip()
            yield ""
        if part.scores:
            mean = sum(part.scores) / len(part.scores)
            yield f"Scores of the {part.name} rows: {min(part.scores):g} to {max(part.scores):g}, mean {mean:.3g}"
            yield ""


def _example(shown: Shown, width: int, colour: bool) -> Iterator[str]:
    tokens = sum(len(piece.ids) for piece in shown.pieces)
    learnt = sum(len(piece.ids) for piece in (*shown.pieces, *shown.response) if piece.learnt)
    counts = f"{tokens:,} tokens" + (f", {learnt:,} learnt" if learnt or not shown.target else "")
    title = f"{shown.place}: {counts}" + (f" -> {printable(shown.target)}" if shown.target else "")
    yield from (f"{_BOLD}{line}{_END}" if colour else line for line in _wrapped(title, width))
    if shown.fate:
        yield from _wrapped(f"({shown.fate})", width)
    for pieces in filter(None, (shown.pieces, shown.response)):
        yield from _text_of(pieces, width, colour)


def _text_of(pieces: Sequence[Piece], width: int, colour: bool) -> Iterator[str]:
    """Yield the text in runs of tokens that are learnt or not, wrapped between words."""
    runs: list[tuple[bool, str]] = []
    for piece in pieces:
        if runs and runs[-1][0] == piece.learnt:
            runs[-1] = (piece.learnt, runs[-1][1] + piece.text)
        else:
            runs.append((piece.learnt, piece.text))
    if not colour:
        for learnt, text in runs:
            for line in printable(text).split("\n"):
                for wrapped in textwrap.wrap(line, width - 4, drop_whitespace=False, break_long_words=False) or [""]:
                    yield f"  {'|' if learnt else '.'} {wrapped}".rstrip()
        return
    yield from _coloured(runs, width)


def _coloured(runs: Sequence[tuple[bool, str]], width: int) -> Iterator[str]:
    """Colour each run; words of two runs can share a line."""
    line, used = "  ", 2
    for learnt, text in runs:
        start = _LEARNT if learnt else _OTHER
        line += start
        for number, part in enumerate(printable(text).split("\n")):
            if number:
                yield line + _END
                line, used = "  " + start, 2
            for word in _words(part):
                if used + len(word.rstrip()) > width and used > 2:
                    yield line + _END
                    line, used, word = "  " + start, 2, word.lstrip()
                line, used = line + word, used + len(word)
        line += _END
    if used > 2:
        yield line


def _words(text: str) -> list[str]:
    """Split a text before its spaces, so that the parts join to the text.

    Example:
        >>> _words("one  two ")
        ['one', ' ', ' two', ' ']
    """
    words: list[str] = []
    for character in text:
        if character == " " or not words:
            words.append(character)
        else:
            words[-1] += character
    return words


def _named(name: str, text: str) -> str:
    return f"  {name:<{_NAME}}{text}"


def _named_lines(name: str, text: str, width: int) -> Iterator[str]:
    lines = textwrap.wrap(text, width - 2 - _NAME, break_long_words=False, break_on_hyphens=False)
    yield from (_named(name if number == 0 else "", line) for number, line in enumerate(lines))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

"""Let docstrings keep the form that `help()` shows well, and still become good pages.

They follow Google's style with formulas as `.. math::` and an `Example:` section; Markdown knows neither. This
extension of Griffe (which reads the sources for mkdocstrings) rewrites the text of each docstring before it is
parsed.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_MATH = re.compile(
    r"""^(?P<indent>[ ]*)\.\.[ ]math::(?P<first>[^\n]*)\n   # the directive, perhaps with the formula on its line
    (?P<rest>(?:(?P=indent)[ ]+\S[^\n]*\n                # lines indented further
    |[ ]*\n(?=(?P=indent)[ ]+\S))*)""",  # and empty lines between them
    re.MULTILINE | re.VERBOSE,
)
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:mod|func|class|data|meth|attr|exc|obj):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:\s*$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring that has something to rewrite."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for every module, class, function and attribute it has read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    r"""Rewrite one docstring.

    >>> to_markdown("Sum.\n\n.. math:: a\n          + b\n\nSee :func:`f`.")
    'Sum.\n\n\\[\na\n+ b\n\\]\n\nSee `f`.'
    """
    text = _MATH.sub(_display, text + "\n").rstrip("\n")
    text = _INLINE_MATH.sub(r"\\(\1\\)", text)
    text = _ROLE.sub(r"`\1`", text)
    return _EXAMPLE.sub("Examples:", text)


def _display(match: re.Match[str]) -> str:
    lines = [match["first"].strip(), *textwrap.dedent(match["rest"]).strip("\n").splitlines()]
    body = "\n".join(match["indent"] + line.strip() for line in lines if line.strip())
    return f"{match['indent']}\\[\n{body}\n{match['indent']}\\]\n"

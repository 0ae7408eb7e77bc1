"""Turn formulas into MathML while the pages are built, so that reading them needs no script and no network.

`pymdownx.arithmatex` finds the formulas and leaves them as LaTeX in elements of class `arithmatex`; this hook runs
over each finished page and replaces what is in them. A formula that cannot be converted, or that keeps an unknown
command, fails the build: a page with raw LaTeX in it is no documentation.
"""

from __future__ import annotations

import html
import re
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
# Commands latex2mathml does not know, in terms of ones it does.
_MACROS = {r"\lVert": r"\left\|", r"\rVert": r"\right\|", r"\operatorname": r"\mathrm"}
# A subscript of capitals is a name, L_{CR}, not a product of C and R.
_NAME = re.compile(r"_\{([A-Z]{2,})\}")
# TeX sets a thin space between a function's name and what it is applied to.
_FUNCTION = re.compile(r"(<mi>(?:log|exp|cos|min|max)</mi>)(?=<m(?:i|n|sub|sup|subsup|row|frac|sqrt)\b)")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace every formula of a page."""
    return _FORMULA.sub(lambda match: _formula(match, page.file.src_path), content)


def _formula(match: re.Match[str], where: str) -> str:
    latex = html.unescape(match["latex"]).strip()
    try:
        mathml = to_mathml(latex, block=match["open"] == "[")
    except Exception as error:  # the converter raises several kinds, all of which mean the same here
        raise PluginError(f"{where}: the formula {latex!r} cannot be converted: {error!r}") from error
    left_over = re.search(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", "", mathml))
    if left_over:
        raise PluginError(f"{where}: the formula {latex!r} keeps {left_over[0]!r}, which is not understood.")
    return f'<{match["tag"]} class="formula">{mathml}</{match["tag"]}>'


def to_mathml(latex: str, *, block: bool) -> str:
    """Convert one formula; `block` sets it on a line of its own, with limits above and below the sums."""
    for command, known in _MACROS.items():
        latex = re.sub(re.escape(command) + r"(?![A-Za-z])", lambda _, known=known: known, latex)
    latex = _NAME.sub(r"_{\\mathrm{\1}}", latex)
    mathml = latex2mathml.converter.convert(latex, display="block" if block else "inline")
    return _FUNCTION.sub(r'\1<mspace width="0.17em"/>', mathml)

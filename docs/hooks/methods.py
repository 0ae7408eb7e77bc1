"""Write the registry's description of each method into the docs page.

A line `[method: adalora]` becomes the method's summary, paper, trained tensors, and a table of its options. The registry
imports no torch, so that the docs can be built without it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from balora.methods.registry import METHODS

_MARK = re.compile(r"^\[method: (?P<name>\w+)\]$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace every mark with a description."""
    return _MARK.sub(lambda mark: describe(mark["name"], page.file.src_path), markdown)


def describe(name: str, page: str) -> str:
    """Return one method's registry entry as Markdown; ``page`` is named in the error."""
    if name not in METHODS:
        raise PluginError(f"{page}: no method {name} is registered in balora/methods/registry.py.")
    method = METHODS[name]
    lines = [method.summary, "", f"Trains {method.trains}." + ("" if method.paper == "-" else f" {method.paper}.")]
    if method.options:
        lines += ["", "| option | default | is | meaning |", "|---|---|---|---|"]
    for key, option in method.options.items():
        default = "–" if option.default is None else f"`{option.default}`"
        start, one_of, values = option.allowed.partition("one of ")
        allowed = start + one_of + (", ".join(f"`{value}`" for value in values.split(", ")) if one_of else "")
        lines.append(f"| `{key}` | {default} | {allowed} | {option.meaning} |")
    return "\n".join(lines)

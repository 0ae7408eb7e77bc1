"""Write what the registry knows of each method into its page, so that the page cannot fall behind the code.

A line `[method: adalora]` becomes the method's summary, paper, what it trains, and a table of its options with their
defaults. The sources are parsed, not imported: building the docs needs no torch.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

SOURCES = Path(__file__).resolve().parents[2] / "src" / "balora" / "methods"
_FILES = {"bottleneck": "bottleneck_adapters", "quantization": "quantize"}
_MARK = re.compile(r"^\[method: (?P<name>\w+)\]$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put a description in place of every mark."""
    return _MARK.sub(lambda mark: describe(mark["name"], page.file.src_path), markdown)


def describe(name: str, where: str) -> str:
    """One method's entry in the registry as Markdown."""
    tree = _parsed("__init__")
    constants = _assignments(tree)
    entry = next(
        (fields for call in ast.walk(tree) if (fields := _fields(call)) and _text(fields["name"], constants) == name),
        None,
    )
    if entry is None:
        raise PluginError(f"{where}: no method {name} is registered in balora/methods/__init__.py.")
    summary, paper, trains = (_text(entry[field], constants) for field in ("summary", "paper", "trains"))
    lines = [summary, "", f"Trains {trains}." + ("" if paper == "-" else f" {paper}.")]
    rows = _options(entry["options"]) if "options" in entry else []
    if rows:
        lines += ["", "| option | default | is | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines)


def _fields(node: ast.AST) -> dict[str, ast.expr] | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Method":
        return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return None


def _options(where: ast.expr) -> list[str]:
    """Rows of a table from options, as `_table` takes them."""
    rows = []
    for key, (call, constants) in _table(where, {}).items():
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        default, meaning = (ast.literal_eval(argument) for argument in call.args[:2])
        limits = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        shown = "–" if default is None else f"`{default}`"
        kind = _allowed(call, limits, constants)
        rows.append(f"| `{key}` | {shown} | {kind} | {' '.join(meaning.split())} |")
    return rows


def _table(where: ast.expr, constants: dict[str, ast.expr]) -> dict[str, tuple[ast.expr, dict[str, ast.expr]]]:
    """Calls by option, each with its module's constants: of `module.NAME`, `NAME` or a dict, other such dicts unpacked in it."""
    if isinstance(where, ast.Attribute):
        assert isinstance(where.value, ast.Name)
        constants = _assignments(_parsed(where.value.id))
        return _table(constants[where.attr], constants)
    if isinstance(where, ast.Name):
        return _table(constants[where.id], constants)
    assert isinstance(where, ast.Dict)
    found: dict[str, tuple[ast.expr, dict[str, ast.expr]]] = {}
    for key, value in zip(where.keys, where.values, strict=True):
        found |= _table(value, constants) if key is None else {ast.literal_eval(key): (value, constants)}
    return found


def _allowed(call: ast.Call, limits: dict[str | None, Any], constants: dict[str, ast.expr]) -> str:
    """What an option may be, as `balora.methods.options` says it."""
    kind = call.func.id
    if kind == "whole":
        return f"a whole number of at least {limits.get('least', 0)}"
    if kind == "switch":
        return "true or false"
    if kind == "number":
        upper = f" and at most {limits['most']:g}" if "most" in limits else ""
        lower = "of at least" if limits.get("including_least") else "above"
        return f"a number {lower} {limits.get('least', 0.0):g}{upper}"
    known = call.args[2]
    values = ast.literal_eval(constants[known.id] if isinstance(known, ast.Name) else known)
    return "one of " + ", ".join(f"`{value}`" for value in values)


def _parsed(module: str) -> ast.Module:
    name = f"{_FILES.get(module, module)}.py"
    path = SOURCES / name if (SOURCES / name).is_file() else next(SOURCES.rglob(name))
    return ast.parse(path.read_text(encoding="utf-8"))


def _assignments(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _text(value: ast.expr, constants: dict[str, ast.expr]) -> str:
    return str(ast.literal_eval(constants[value.id] if isinstance(value, ast.Name) else value))

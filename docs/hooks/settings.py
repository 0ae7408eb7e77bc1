"""Write the tables of the configuration reference from the config classes, so that page and code always agree.

A line `[settings: balora/regularization.py RegularizationConfig]` in a page becomes a table of the fields of that class: key,
value, default, meaning. The sources are parsed, not imported. The meaning is a field's `description` or the string below it; a
field without one fails the build.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

SOURCES = Path(__file__).resolve().parents[2] / "src"
_MARK = re.compile(r"^\[settings: (?P<file>\S+) (?P<name>\w+)\]$", re.MULTILINE)
_WORDS = {"int": "whole number", "Whole": "whole number", "float": "number", "Number": "number", "str": "text"}
_WORDS |= {"bool": "true, false", "dict": "section", "tuple": "list", "list": "list"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace every mark by a table."""
    return _MARK.sub(lambda mark: table(mark["file"], mark["name"], page.file.src_path), markdown)


def table(file: str, name: str, page: str) -> str:
    """Write the fields of one class as a Markdown table."""
    path = SOURCES / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        raise PluginError(f"{page}: {file} has no class {name}.")
    # Names of sets of values, such as Task = Literal[...]; the table lists the values.
    aliases = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for node, after in zip(found[0].body, [*found[0].body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default, meaning = _default_and_meaning(node, after)
            if not meaning:
                raise PluginError(f"{page}: {file}, {name}.{node.target.id} has no description.")
            kinds = ", ".join(dict.fromkeys(_kinds(node.annotation, aliases)))
            rows.append(f"| `{node.target.id}` | {kinds} | {default} | {_cell(meaning)} |")
    return "\n".join(rows)


def _default_and_meaning(node: ast.AnnAssign, after: ast.stmt | None) -> tuple[str, str]:
    value, meaning = node.value, ""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Field"):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        meaning = ast.literal_eval(given["description"]) if "description" in given else ""
        value = ast.Dict([], []) if "default_factory" in given else given.get("default")
    if not meaning and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        meaning = str(after.value.value)
    if value is None:
        return "*required*", meaning
    constant = ast.literal_eval(value)
    shown = {True: "true", False: "false"}.get(constant, constant) if isinstance(constant, bool) else constant
    return ("–" if constant is None or constant == {} else f"`{shown}`"), meaning


def _kinds(annotation: ast.expr, aliases: dict[str, ast.expr]) -> list[str]:
    """Describe the values of a field: each member of a union, each value of a choice."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return _kinds(left, aliases) + _kinds(right, aliases)
        case ast.Constant(value=None):
            return []
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return _kinds(first, aliases)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return [f"`{ast.literal_eval(value)}`" for value in values]
        case ast.Subscript(value=base):
            return _kinds(base, aliases)
        case ast.Name(id=name) if name in _WORDS:
            return [_WORDS[name]]
        case ast.Name(id=name) if isinstance(aliases.get(name), ast.Subscript):
            return _kinds(aliases[name], aliases)
        case _:
            return ["section"]


def _cell(text: str) -> str:
    # Markdown's attr_list would take braces at the end of a cell for attributes.
    return re.sub(r"\}$", "&#125;", " ".join(text.split()).replace("|", "\\|"))

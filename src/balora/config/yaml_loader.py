"""Read a config file and its overrides into plain values: YAML as people expect it, mistakes with their line.

PyYAML follows YAML 1.1, where ``2e-5`` is a text and ``no`` is false. Here scalars are read as YAML 1.2 reads them. A file may
build on others (``extends``), so that many runs share what they have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from balora.errors import BALoraError, raise_all, suggest

# What YAML 1.2's core schema takes a plain scalar for, tried in this order; anything else is text.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars, which refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a second use of the same key would otherwise win without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def parse_yaml(text: str) -> Any:
    """Parse YAML text safely, with YAML 1.2 scalars.

    Raises:
        yaml.YAMLError: The text is not YAML, or gives a key twice.

    Example:
        >>> parse_yaml("{rate: 2e-5, strategy: no, bf16: true}")
        {'rate': 2e-05, 'strategy': 'no', 'bf16': True}
    """
    return yaml.load(text, Loader=_Loader)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML config file into a mapping, with the files that it extends merged in.

    ``extends`` names one file or several, relative to the file that it stands in. Later files win over earlier ones and the file
    itself over all of them; sections are merged key by key, everything else is replaced, and a key left empty is put back to its
    default.

    Raises:
        BALoraError: A file is missing or unreadable, is not YAML (with the line), is not a mapping, or extends itself.
    """
    return _extended(Path(path), ())


def _extended(path: Path, open_files: tuple[Path, ...]) -> dict[str, Any]:
    """One file over those it extends; ``open_files`` are the ones whose turn is not over."""
    if path.resolve() in open_files:
        circle = " -> ".join(p.name for p in (*open_files[open_files.index(path.resolve()) :], path))
        raise BALoraError(f"The config files extend each other in a circle: {circle}.")
    values = _read_file(path)
    names = values.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BALoraError(f"extends in {path} is the name of a file or a list of them, not {names!r}.")
    merged: dict[str, Any] = {}
    for name in names:
        base = path.parent / Path(name).expanduser()
        if not base.is_file():
            siblings = [p.name for p in base.parent.glob("*.y*ml")] if base.parent.is_dir() else []
            raise BALoraError(f"{path} extends {name}, and there is no file {base}.{suggest(base.name, siblings)}")
        merged = _merged(merged, _extended(base, (*open_files, path.resolve())))
    return _merged(merged, values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one: sections key by key, otherwise what is above."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise BALoraError(f"There is no config file {path}.{near}") from error
    except IsADirectoryError as error:
        own = " A run's is in it: config.yaml." if (path / "config.yaml").is_file() else ""
        raise BALoraError(f"{path} is a folder; give the config file, which is YAML.{own}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"The config file {path} cannot be read: {error}.") from error
    try:
        values = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise BALoraError(f"{path} is not valid YAML: {_explain(error)}.") from error
    if values is None:
        raise BALoraError(f"The config file {path} is empty; it needs at least model, task, data and output.")
    if not isinstance(values, dict):
        raise BALoraError(f"{path} must hold 'key: value' lines at the top, not a {_kind(values)}.")
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys, such as ``training.learning_rate=2e-5``, in a copy of a config's values.

    The right-hand side is read as YAML; nothing after ``=`` means null, which puts the key back to its default.

    Raises:
        BALoraError: One or more overrides are not ``dotted.key=value``, or reach into something that is no section.

    Example:
        >>> apply_overrides({"method": {"rank": 8}}, ["method.rank=16", "seed=1"])
        {'method': {'rank': 16}, 'seed': 1}
    """
    changed = _copy(values)
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"The override {override!r} is not of the form dotted.key=value.")
            continue
        try:
            problem = _set(changed, parts, parse_yaml(text))
        except (yaml.YAMLError, ValueError) as error:
            problem = f"The value of the override {override!r} is not valid YAML: {_explain(error)}."
        if problem:
            problems.append(problem)
    raise_all(problems, "The overrides cannot be used")
    return changed


def _set(values: dict[str, Any], parts: list[str], value: Any) -> str | None:
    """Set one dotted key in place; return what is wrong, or None."""
    for depth, part in enumerate(parts[:-1]):
        inner = values.get(part)
        if inner is None or (part == "regularization" and not isinstance(inner, dict)):
            inner = values[part] = {}  # an empty section, or `regularization: off`, is there to be filled
        if not isinstance(inner, dict):
            section = ".".join(parts[: depth + 1])
            return f"The override {'.'.join(parts)} cannot be set: {section} is {inner!r}, not a section."
        values = inner
    values[parts[-1]] = value
    return None


def _copy(values: Any) -> Any:
    """Copy nested mappings, so that the caller's stay as they are."""
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, dict) else values


def _explain(error: Exception) -> str:
    """Put a YAML mistake into few words, with line and column where known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"{error.problem or error.context}{place}"
    return " ".join(str(error).split())


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"

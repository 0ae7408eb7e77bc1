"""Read a config file and its overrides into plain values, and report YAML mistakes with their line.

PyYAML follows YAML 1.1, where ``2e-5`` is text and ``no`` is false. This module reads scalars as YAML 1.2 does. A file may
extend other files (``extends``), so that several runs can share keys.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from balora.errors import BALoraError, raise_all, suggest_path

# Types of plain scalars in YAML 1.2's core schema, tried in this order; anything else is text.
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
    """PyYAML's safe loader with YAML 1.2 scalars. It refuses duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping and refuse duplicate keys, of which PyYAML would silently take the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def parse_yaml(text: str) -> Any:
    """Parse YAML text safely, with YAML 1.2 scalars. A key that is given twice is a `yaml.YAMLError`.

    Example:
        >>> parse_yaml("{rate: 2e-5, strategy: no, bf16: true}")
        {'rate': 2e-05, 'strategy': 'no', 'bf16': True}
    """
    return yaml.load(text, Loader=_Loader)


def read_config(path: str | Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML config file into a mapping, merged over the files that it extends.

    ``extends`` names one or several files, relative to the file that contains it. Later files win over earlier ones, and the
    file itself wins over all of them. Sections are merged key by key, any other value is replaced, and an empty key resets to
    its default. ``extending`` is for the recursion: the chain of files that extend this one.

    Raises:
        BALoraError: A file is missing or unreadable, is not YAML (with the line), is not a mapping, or extends itself.
    """
    path = Path(path)
    if path.resolve() in extending:
        circle = " -> ".join(p.name for p in (*extending[extending.index(path.resolve()) :], path))
        raise BALoraError(f"The config files extend each other in a circle: {circle}.")
    values = _read_file(path)
    names = values.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BALoraError(f"extends in {path} must be the name of a file or a list of names, not {names!r}.")
    merged: dict[str, Any] = {}
    for name in names:
        base = path.parent / Path(name).expanduser()
        if not base.is_file():
            raise BALoraError(f"{path} extends {name}, but there is no file {base}.{suggest_path(base, '*.y*ml')}")
        merged = _merge(merged, read_config(base, (*extending, path.resolve())))
    return _merge(merged, values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings: sections key by key, any other value from ``changes``."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise BALoraError(f"There is no config file {path}.{suggest_path(path, '*.y*ml')}") from error
    except IsADirectoryError as error:
        inside = path / "config.yaml"
        hint = f" If it is a run directory, its config is {inside}." if inside.is_file() else ""
        raise BALoraError(f"{path} is a folder; give the path of a YAML config file.{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"The config file {path} cannot be read: {error}.") from error
    try:
        values = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise BALoraError(f"{path} is not valid YAML: {_explain(error)}.") from error
    if values is None:
        raise BALoraError(f"The config file {path} is empty; it needs at least model, task, data and output.")
    if not isinstance(values, dict):
        kind = "list" if isinstance(values, list) else "single value"
        raise BALoraError(f"{path} must hold 'key: value' lines at the top, not a {kind}.")
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys, such as ``training.learning_rate=2e-5``, in a copy of a config's values.

    The value is read as YAML. An empty value means null, which resets the key to its default. Wrong overrides are one
    `BALoraError`.

    Example:
        >>> apply_overrides({"method": {"rank": 8}}, ["method.rank=16", "seed=1"])
        {'method': {'rank': 16}, 'seed': 1}
    """
    changed = copy.deepcopy(values)
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
            inner = values[part] = {}  # an empty section, or `regularization: off`, becomes a section
        if not isinstance(inner, dict):
            section = ".".join(parts[: depth + 1])
            return f"The override {'.'.join(parts)} cannot be set: {section} is {inner!r}, not a section."
        values = inner
    values[parts[-1]] = value
    return None


def _explain(error: Exception) -> str:
    """Describe a YAML mistake in a few words, with line and column if known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        position = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"{error.problem or error.context}{position}"
    return " ".join(str(error).split())

"""Read a config file and its overrides into plain values, and report YAML mistakes with their line.

PyYAML follows YAML 1.1, where ``2e-5`` is text and ``no`` is false. This module reads scalars as YAML 1.2 does. A file may
extend other files (``extends``), so that several runs can share keys.
"""

import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from balora.errors import BALoraError, raise_all, shown, suggest_path

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


_TAGS = "tag:yaml.org,2002:"
_MERGE = f"{_TAGS}merge"
_SCALAR_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_MOST_BYTES = 2**20
_MOST_VALUES = 20_000
_MOST_LEVELS = 50
_MOST_DIGITS = 100


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars. It refuses duplicate keys, tags, deep nesting and alias bombs."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._anchors: dict[str, int | None] = {}  # number of values below each anchor, None inside it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value; refuse deep nesting, values that contain themselves, and aliases that multiply."""
        event = self.peek_event()
        before, anchor = self._count, str(getattr(event, "anchor", None) or "")
        if isinstance(event, yaml.AliasEvent):
            size = self._anchors.get(anchor, 0)
            if size is None:
                raise _mistake(f"the value of &{anchor} contains itself", event.start_mark)
            self._count += size
        elif anchor:
            self._anchors[anchor] = None
        self._depth += 1
        self._count += 1
        if self._depth > _MOST_LEVELS:
            raise _mistake(f"the values are nested more than {_MOST_LEVELS} levels deep", event.start_mark)
        if self._count > _MOST_VALUES:
            problem = f"the file has more than {_MOST_VALUES:,} values, counting those that aliases (*) repeat"
            raise _mistake(problem, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor and not isinstance(event, yaml.AliasEvent):
            self._anchors[anchor] = self._count - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping and refuse duplicate keys, of which PyYAML would silently take the last."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key must be text, not a list or a section", key.start_mark)
            if key.tag == _MERGE:
                continue
            name = self.construct_object(key)
            if name is None or name == "":
                raise _mistake("a key cannot be empty or null", key.start_mark)
            if str(name) in seen:
                raise _mistake(f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(str(name))
        return super().construct_mapping(node, deep=deep)

    def construct_number_or_bool(self, node: yaml.ScalarNode) -> Any:
        """Convert a scalar; PyYAML's own errors for a wrong one have no line, or are not YAML errors."""
        kind = node.tag.removeprefix(_TAGS)
        try:
            value = getattr(super(), f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError) as error:
            if kind == "int" and node.value.strip("+-").replace("_", "").isdecimal():
                raise _mistake("the number is too large", node.start_mark) from error
            raise _mistake(f"{shown(node.value)} is not {_SCALAR_NAMES[kind]}", node.start_mark) from error
        if kind == "int" and abs(value) >= 10**_MOST_DIGITS:
            raise _mistake("the number is too large", node.start_mark)
        return value

    def refuse_tag(self, node: yaml.Node) -> Any:
        """Refuse a value with a tag such as ``!!timestamp`` or ``!env``, which would make anything but plain values."""
        tag = node.tag.replace(_TAGS, "!!")
        raise _mistake(f"the tag {tag} is not supported; write the value without a tag", node.start_mark)


def _mistake(problem: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{_TAGS}{_name}", re.compile(f"(?:{_pattern})$"), _first)
for _name in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"{_TAGS}{_name}", _Loader.refuse_tag)
for _name in _SCALAR_NAMES:
    _Loader.add_constructor(f"{_TAGS}{_name}", _Loader.construct_number_or_bool)
_Loader.add_constructor(None, _Loader.refuse_tag)


def parse_yaml(text: str) -> Any:
    """Parse YAML text safely, with YAML 1.2 scalars. A key that is given twice is a `yaml.YAMLError`.

    Example:
        >>> parse_yaml("{rate: 2e-5, strategy: no, bf16: true}")
        {'rate': 2e-05, 'strategy': 'no', 'bf16': True}
    """
    return yaml.load(text, Loader=_Loader)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts quotes around text that YAML 1.1 or YAML 1.2 would read as another type."""


for _name, (_pattern, _first) in _SCALARS.items():
    _Dumper.add_implicit_resolver(f"{_TAGS}{_name}", re.compile(f"(?:{_pattern})$"), _first)


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML that `parse_yaml` and a reader of YAML 1.1 read back as the same values.

    Example:
        >>> dump_yaml({"revision": "12e45", "rate": 2e-5})
        "revision: '12e45'\\nrate: 2.0e-05\\n"
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_config(path: str | Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML config file into a mapping, merged over the files that it extends.

    ``extends`` names one or several files, relative to the file that contains it. Later files win over earlier ones, and the
    file itself wins over all of them. Sections are merged key by key, any other value is replaced, and an empty key resets to
    its default. ``extending`` is for the recursion: the chain of files that extend this one.

    Raises:
        BALoraError: A file is missing or unreadable, is not YAML (with the line), is not a mapping, or extends itself.
    """
    path = Path(path)
    real = Path(os.path.realpath(path))
    if real in extending:
        circle = " -> ".join(p.name for p in (*extending[extending.index(real) :], path))
        raise BALoraError(f"The config files extend each other in a circle: {circle}.")
    values = _read_file(path)
    names = values.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BALoraError(f"extends in {path} must be the name of a file or a list of names, not {shown(names)}.")
    merged: dict[str, Any] = {}
    for name in names:
        base = path.parent / Path(name).expanduser()
        if not base.is_file():
            raise BALoraError(f"{path} extends {name}, but there is no file {base}.{suggest_path(base, '*.y*ml')}")
        merged = _merge(merged, read_config(base, (*extending, real)))
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
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BALoraError(f"There is no config file {path}.{suggest_path(path, '*.y*ml')}") from error
    except IsADirectoryError as error:
        inside = path / "config.yaml"
        hint = f" If it is a run directory, its config is {inside}." if inside.is_file() else ""
        raise BALoraError(f"{path} is a folder; give the path of a YAML config file.{hint}") from error
    except OSError as error:
        raise BALoraError(f"The config file {path} cannot be read: {error.strerror or error}.") from error
    if len(content) > _MOST_BYTES:
        raise BALoraError(
            f"{path} is too large for a config file: it has more than 1 MB. Give the path of a YAML config."
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BALoraError(f"The config file {path} cannot be read: it is text in UTF-16. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BALoraError(
            f"The config file {path} cannot be read: it is not text in UTF-8 (byte {error.start:,}). If it is a config, save "
            "it as UTF-8."
        ) from error
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
            problems.append(f"The override {shown(override)} is not of the form dotted.key=value.")
            continue
        if parts == ["extends"]:
            problems.append(
                "extends cannot be an override, because the files are read before. Write it in the config file."
            )
            continue
        try:
            problem = _set(changed, parts, parse_yaml(text))
        except (yaml.YAMLError, ValueError) as error:
            problem = f"The value of the override {shown(override)} is not valid YAML: {_explain(error)}."
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
            return f"The override {'.'.join(parts)} cannot be set: {section} is {shown(inner)}, not a section."
        values = inner
    values[parts[-1]] = value
    return None


def _explain(error: Exception) -> str:
    """Describe a YAML mistake in a few words, with line and column if known."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"it contains the character {error.character:#04x} at position {error.position}, which no text file has"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        position = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = error.problem or error.context or ""
        return f"{f'{error.context}, ' if problem.startswith('but') else ''}{problem}{position}"
    return " ".join(str(error).split())

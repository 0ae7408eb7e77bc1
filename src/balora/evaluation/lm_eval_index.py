"""Names of the tasks of lm-evaluation-harness, and the code that a task file runs, without importing the library.

The library parses its 14,000 task files with a YAML parser, which takes ten seconds. Their names are found here by a search.
"""

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from balora.errors import BALoraError

_KEY = re.compile(
    rb"""^["']?(?:task|group|tag)["']?[ \t]*:[ \t]*(?:\#.*)?"""
    rb"""(?:["']?([^\s"'\[\]{}\#][^\r\n"'\#]*?)["']?[ \t]*(?:\#.*)?\r?$|\[([^\]]*)\]|((?:\r?\n[ \t]*-[^\n]*)+))""",
    re.MULTILINE,
)
_INLINE = re.compile(rb"""[^\s,"'\[\]]+""")
_LINE = re.compile(rb"""^[ \t]*-[ \t]*(?:["']?(?:task|group)["']?:[ \t]*)?["']?([^\s"'\#:]+)""", re.MULTILINE)


def is_installed() -> bool:
    """Return True if lm-evaluation-harness is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def is_yaml_file(name: str) -> bool:
    """Return True if a name is the path of an existing YAML file, which defines a task."""
    return name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file()


@functools.cache
def task_names() -> frozenset[str]:
    """Return the names of the tasks, groups and tags of the installed library."""
    spec = importlib.util.find_spec("lm_eval")
    names: set[bytes] = set()
    for root in (spec.submodule_search_locations or []) if spec else []:
        for folder, _, files in os.walk(Path(root) / "tasks"):
            for file in files:
                if "yaml" in file or "." not in file:  # also "_template_yaml", which other files include
                    names.update(_names_in(Path(folder, file).read_bytes()))
    return frozenset(name.decode("utf-8", "replace") for name in names)


def _names_in(text: bytes) -> Iterator[bytes]:
    for single, inline, block in _KEY.findall(text):
        if single:
            yield single.strip()
        yield from _INLINE.findall(inline)
        yield from _LINE.findall(block)


def task_code(path: Path) -> list[str]:
    """List the files among a task file and the files it includes that name Python code to run.

    Code is named by ``!function`` and other tags, by ``class``, and by metrics of the library `evaluate`, which downloads them.
    Files of the installed lm-evaluation-harness are trusted.

    Raises:
        BALoraError: A file cannot be read.
    """
    spec = importlib.util.find_spec("lm_eval")
    trusted = [Path(root).resolve() for root in (spec.submodule_search_locations or [])] if spec else []
    found, pending, seen = [], [path.expanduser().resolve()], set()
    while pending:
        file = pending.pop()
        if file in seen or any(file.is_relative_to(root) for root in trusted):
            continue
        seen.add(file)
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Inert)  # a safe loader
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BALoraError(f"The task file {file} cannot be read: {reason}.") from error
        if not isinstance(content, dict):
            raise BALoraError(f"The task file {file} is not a YAML mapping with the keys of a task.")
        parts = list(_parts(content))
        if any(isinstance(part, _Tagged) or (isinstance(part, dict) and _names_code(part)) for part in parts):
            found.append(str(file))
        includes = [part["include"] for part in parts if isinstance(part, dict) and "include" in part]
        names = [name for entry in includes for name in (entry if isinstance(entry, list) else [entry])]
        pending += [(file.parent / str(name)).resolve() for name in names]
    return found


def _names_code(mapping: dict[Any, Any]) -> bool:
    return "class" in mapping or bool(mapping.get("hf_evaluate"))


def _parts(content: Any) -> Iterator[Any]:
    """Yield all values in a YAML document, each once."""
    pending, seen = [content], set()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        pending += [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []


class _Tagged(str):
    """Value with a tag that is not read."""

    __slots__ = ()


class _Inert(yaml.SafeLoader):
    """Safe loader that keeps the tag of a value that it does not know."""


_Inert.add_multi_constructor("", lambda loader, suffix, node: _Tagged(suffix))

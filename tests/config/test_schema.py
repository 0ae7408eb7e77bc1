"""The JSON schema of a config knows the keys that the config classes know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from balora.config.schema import as_mapping, config_schema
from balora.config.sections import DataConfig
from balora.config.training_arguments import training_fields
from balora.config.yaml_loader import parse_yaml, read_config
from command import Command

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "recipes").rglob("*.yaml")])
SCHEMA = config_schema()


def problems(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Yield the mistakes that the schema finds in a value: the parts of JSON schema that the config's schema uses."""
    if "$ref" in schema:
        yield from problems(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], value, path)
    if "anyOf" in schema and all(list(problems(one, value, path)) for one in schema["anyOf"]):
        yield f"{path}: {value!r} fits none"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{path}: not {schema['const']}"
    kinds = schema.get("type")
    if kinds and not any(_is(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{path}: {value!r} is no {kinds}"
    if isinstance(value, Mapping):
        known = schema.get("properties", {})
        for key, item in value.items():
            if key in known:
                yield from problems(known[key], item, f"{path}.{key}")
            elif schema.get("additionalProperties", True) is False:
                yield f"{path}: unknown {key}"
        yield from (f"{path}: no {key}" for key in schema.get("required", ()) if key not in value)


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds = {"integer": int, "number": int | float, "string": str, "object": Mapping, "array": list, "null": type(None)}
    return kind in kinds and isinstance(value, kinds[kind])


@pytest.mark.parametrize("path", CONFIGS[::4], ids=lambda path: path.stem)
def test_the_projects_own_configs_fit(path: Path) -> None:
    values = read_config(path)
    complete = {"model": "m", "data": {"train": "x"}, "output": "o", **values}
    complete["data"] = {"train": "x", **complete["data"]}
    assert list(problems(SCHEMA, complete)) == []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("{model: m, data: {train: d.jsonl}, output: o}", None),
        (
            "{model: m, data: {train: [a, b], eval: 0.1, text: }, output: o, regularization: off, early_stopping: 3}",
            None,
        ),
        ("{model: m, data: {train: d}, output: o, early_stopping: {patience: 2, min_delta: 0.1}}", None),
        ("{model: m, data: {train: d, promt: q}, output: o}", "unknown"),
        ("{model: m, data: {train: d}, output: o, training: {learning_rat: 1}}", "training"),
        ("{model: m, data: {train: d}, output: o, method: {name: pisa}}", "method"),
        ("{model: m, data: {train: d}, output: o, task: generatoin}", "task"),
        ("{model: m, output: o}", "no data"),
    ],
)
def test_mistakes_are_found_and_nothing_else(text: str, mistake: str | None) -> None:
    found = list(problems(SCHEMA, parse_yaml(text)))
    assert (found == []) if mistake is None else any(mistake in problem for problem in found), found


def test_every_key_has_a_meaning() -> None:
    assert as_mapping(SCHEMA, "data").keys() == DataConfig.model_fields.keys()
    assert all("description" in given for given in as_mapping(SCHEMA, "data").values())
    assert {"learning_rate", "eval_strategy"} <= as_mapping(SCHEMA, "training").keys() < training_fields().keys()


def test_the_command_prints_it(balora: Command, tmp_path: Path) -> None:
    assert json.loads(balora("schema").out) == json.loads(json.dumps(SCHEMA))
    outcome = balora("schema", "-o", tmp_path / "s.json")
    assert "$schema=s.json" in outcome.out
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(json.dumps(SCHEMA))

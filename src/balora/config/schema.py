"""JSON schema of a config, so that an editor completes its keys, shows their meaning and marks mistakes."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from balora.anchors import Anchors
from balora.config.data_columns import ROLES
from balora.config.run_config import RunConfig
from balora.config.training_arguments import training_fields
from balora.config.validation import SET_ELSEWHERE
from balora.methods.registry import METHODS
from balora.regularization import RegularizationConfig

FILE = "balora.schema.json"
"""Name of the schema's file beside a config."""
_TYPES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    dict: "object",
    list: "array",
    tuple: "array",
}
_SWITCH = {"enum": ["on", "off", True, False]}
# Values that a config takes and that pydantic cannot see, because a function checks them.
_CHECKED: dict[str, Any] = {
    "DataConfig.train": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "DataConfig.eval": {"anyOf": [{"type": "number"}, {"type": "string"}, {"const": False}]},
    "DataConfig.roles": {"type": "object", "additionalProperties": {"enum": list(ROLES)}},
    "DataConfig.packing": {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 2}]},
    "DataConfig.subsample": {"type": "number"},
    "DataConfig.imbalance": {"type": "object", "additionalProperties": {"type": "number"}},
    "DataConfig.duplicate": {"anyOf": [{"type": "number"}, {"type": "object"}]},
    "FurtherData.train": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file.

    It allows what `balora train` completes by itself: the task, and the columns of the data. An empty key means the default.

    Example:
        >>> schema = config_schema()
        >>> sorted(schema["required"]), schema["properties"]["task"]["anyOf"][0]["enum"][0]
        (['data', 'model', 'output'], 'generation')
    """
    schema = RunConfig.model_json_schema(schema_generator=_Lenient)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "balora config"}
    definitions, properties = schema["$defs"], schema["properties"]
    for key, found in _CHECKED.items():
        section, _, name = key.partition(".")
        definitions[section]["properties"][name] |= found
    method = definitions["MethodConfig"]["properties"]
    method["name"]["enum"] = list(METHODS)
    for option in sorted({name for one in METHODS.values() for name in one.options} - method.keys()):
        users = ", ".join(name for name, one in METHODS.items() if option in one.options)
        method[option] = {"description": f"option of {users}"}
    properties["regularization"] |= {"anyOf": [_SWITCH, _dataclass_schema(RegularizationConfig)]}
    anchors = _dataclass_schema(Anchors)
    anchors["additionalProperties"] = True  # the section has further names, such as text
    properties["anchor"] |= {"anyOf": [{"type": "string"}, _SWITCH, anchors]}
    training = {name: _type_schema(kind) for name, kind in training_fields().items() if name not in SET_ELSEWHERE}
    properties["early_stopping"]["anyOf"].append({"type": "integer", "minimum": 1})
    properties["training"] |= {"type": "object", "properties": training, "additionalProperties": False}
    properties["extends"] = {
        "description": "config files whose keys this file takes over; its own keys win",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["required"] = [name for name in schema["required"] if name != "task"]
    for section in (schema, *definitions.values()):
        _allow_empty(section)
    return schema


class _Lenient(GenerateJsonSchema):
    """Schemas of fields that a function checks allow everything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def _allow_empty(section: dict[str, Any]) -> None:
    """Let every optional key of a section be empty, and drop defaults that stand for one."""
    required = set(section.get("required", ()))
    for name, given in section.get("properties", {}).items():
        if given.get("default", ...) is None:
            del given["default"]
        if name in required or not given.keys() & {"type", "anyOf", "enum", "$ref", "const"}:
            continue
        about = {key: given.pop(key) for key in ("description", "default", "title") if key in given}
        kinds = given.pop("anyOf", None) or [dict(given)]
        section["properties"][name] = {
            **about,
            "anyOf": [*(k for k in kinds if k != {"type": "null"}), {"type": "null"}],
        }


def _dataclass_schema(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = {field.name: _type_schema(hints[field.name]) for field in dataclasses.fields(kind)}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _type_schema(kind: Any) -> dict[str, Any]:
    """Return the schema of a declared type; an unknown type allows everything."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {"enum": list(members)}
    if origin in (typing.Union, types.UnionType):
        found = [_type_schema(member) for member in members]
        return {"anyOf": found} if all(found) else {}
    if kind is types.NoneType:
        return {"type": "null"}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        values = [member.value for member in kind]
        return {"enum": [*values, *([False] if "no" in values else [])]}  # YAML 1.1 editors read no as false
    plain = _TYPES.get(origin or kind)
    if plain == "string":
        return {"type": ["string", "number", "boolean"]}  # such as a name that is a number
    return {"type": plain} if plain else {}


def as_mapping(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the properties of a section of a schema, such as ``data``.

    Example:
        >>> "messages" in as_mapping(config_schema(), "data")
        True
    """
    given = schema["properties"][name]
    for kind in (given, *given.get("anyOf", ())):
        if "$ref" in kind:
            found: Mapping[str, Any] = schema["$defs"][kind["$ref"].rpartition("/")[2]]["properties"]
            return found
        if "properties" in kind:
            return typing.cast(Mapping[str, Any], kind["properties"])
    return {}

"""Fields of transformers' TrainingArguments without importing transformers, and the number of steps they lead to.

Importing transformers takes seconds, and the report of a mistake in a config should not wait for that. So the fields are read
from the source of the installed version.
"""

import ast
import builtins
import dataclasses
import enum
import functools
import importlib.util
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.errors import BALoraError

_FILES = ("debug_utils", "trainer_utils", "training_args")  # TrainingArguments and the enumerations of its fields


@functools.cache
def training_fields() -> dict[str, Any]:
    """Return the declared type of every field of the installed TrainingArguments, by name.

    A type that is neither built in nor an enumeration becomes an empty class of the same name.
    """
    try:
        return _fields_in_source()
    except (OSError, SyntaxError, LookupError, NameError, TypeError):  # an unexpected layout of the package
        from transformers import TrainingArguments

        kinds = typing.get_type_hints(TrainingArguments)
        return {field.name: kinds[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def _fields_in_source() -> dict[str, Any]:
    spec = importlib.util.find_spec("transformers")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("transformers is not installed")
    folder = Path(spec.submodule_search_locations[0])
    trees = [ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")) for name in _FILES]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    annotations, used = {}, set()
    for node in classes["TrainingArguments"].body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=field)) if "init=False" not in _code(node.value):
                annotations[field] = _code(node.annotation)
                used |= {name.id for name in ast.walk(ast.parse(annotations[field])) if isinstance(name, ast.Name)}
    declared = type("TrainingArguments", (), {"__annotations__": annotations})
    return typing.get_type_hints(declared, localns={name: _type_named(name, classes.get(name)) for name in used})


def _code(node: ast.expr | None) -> str:
    """Return the source of an expression, without the quotes of an annotation written as text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node) if node is not None else ""


def _type_named(name: str, definition: ast.ClassDef | None) -> Any:
    """Return the type of a name: a built-in type, else an enumeration with the defined members, else a placeholder."""
    known = getattr(builtins, name, getattr(typing, name, None))
    if known is not None:
        return known
    members = {}
    for node in definition.body if definition else ():
        match node:
            case ast.Assign(targets=[ast.Name(id=member)], value=ast.Constant(value=value)):
                members[member] = value
    return enum.StrEnum(name, members) if members else type(name, (), {})


def optimizer_steps(rows: int, training: Mapping[str, Any], processes: int = 1) -> int:
    """Count the optimizer steps of a run from its training rows and ``training`` section, as the Trainer does.

    The last batch and the last accumulation of an epoch may be incomplete.

    Raises:
        BALoraError: ``dataloader_drop_last`` is on, and the rows fill no batch.
    """
    accelerator = training.get("accelerator_config")
    split = isinstance(accelerator, Mapping) and accelerator.get("split_batches", False)
    size = training.get("per_device_train_batch_size", 8) * (1 if split else processes)
    drop_last = training.get("dataloader_drop_last", False)
    batches = rows // size if drop_last else math.ceil(rows / size)
    if drop_last and batches == 0:
        raise BALoraError(no_full_batch(rows, size))
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    per_epoch = max(1, math.ceil(batches / training.get("gradient_accumulation_steps", 1)))
    return math.ceil(per_epoch * training.get("num_train_epochs", 3.0))


def describe_large_batch(rows: int, training: Mapping[str, Any], processes: int = 1) -> str | None:
    """Say that one optimizer step takes all training rows; None if the batch is not larger than the data.

    Example:
        >>> describe_large_batch(10, {"per_device_train_batch_size": 16})
        'An optimizer step asks for 16 rows, and there are 10: every step takes all rows, and an epoch is one step.'
    """
    accelerator = training.get("accelerator_config")
    split = isinstance(accelerator, Mapping) and accelerator.get("split_batches", False)
    size = training.get("per_device_train_batch_size", 8) * (1 if split else processes)
    size *= training.get("gradient_accumulation_steps", 1)
    if not 0 < rows < size:
        return None
    return f"An optimizer step asks for {size:,} rows, and there are {rows:,}: every step takes all rows, and an epoch is one step."


def no_full_batch(rows: int, size: int) -> str:
    """Say that a run has no step, because its rows are fewer than one batch of all processes."""
    return (
        f"The run would take no step: there are {rows:,} training rows, one batch of all processes takes {size:,}, and "
        "training.dataloader_drop_last drops a batch that is not full. Lower training.per_device_train_batch_size, or set "
        "training.dataloader_drop_last to false."
    )

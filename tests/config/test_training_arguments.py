"""The fields of TrainingArguments that are read from its source equal those of the imported class."""

from __future__ import annotations

import dataclasses
import enum
import typing

import pytest
from transformers import TrainingArguments

from balora.config import training_arguments
from balora.config.training_arguments import optimizer_steps, training_fields
from balora.config.validation import Problems, check_training
from balora.errors import BALoraError


def plain(kind: object) -> object:
    """A type with every enumeration replaced by its values and every other class by its name."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(member.value for member in kind)
    members = typing.get_args(kind)
    if members:
        return (getattr(typing.get_origin(kind), "__name__", ""), *map(plain, members))
    return getattr(kind, "__name__", kind)


def declared() -> dict[str, object]:
    kinds = typing.get_type_hints(TrainingArguments)
    return {field.name: plain(kinds[field.name]) for field in dataclasses.fields(TrainingArguments) if field.init}


def test_the_fields_in_the_source_are_those_of_the_class() -> None:
    found = {name: plain(kind) for name, kind in training_arguments._fields_in_source().items()}
    assert found == declared()
    assert "linear" in str(found["lr_scheduler_type"]) and "adamw_torch" in str(found["optim"])


def test_an_unexpected_layout_of_the_package_falls_back_to_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> dict[str, object]:
        raise KeyError("TrainingArguments")

    monkeypatch.setattr(training_arguments, "_fields_in_source", absent)
    found = training_fields.__wrapped__()
    assert {name: plain(kind) for name, kind in found.items()} == declared()


@pytest.mark.parametrize(
    ("rows", "training", "processes", "steps"),
    [
        (20, {"per_device_train_batch_size": 4, "num_train_epochs": 1}, 1, 5),
        (21, {"per_device_train_batch_size": 4, "num_train_epochs": 1}, 1, 6),
        (21, {"per_device_train_batch_size": 4, "num_train_epochs": 1, "dataloader_drop_last": True}, 1, 5),
        (21, {"per_device_train_batch_size": 4, "num_train_epochs": 2, "gradient_accumulation_steps": 4}, 1, 4),
        (64, {"per_device_train_batch_size": 4, "num_train_epochs": 1}, 2, 8),
        (64, {"max_steps": 3}, 1, 3),
        (64, {}, 1, 24),
        (4, {"max_steps": 3, "dataloader_drop_last": True, "per_device_train_batch_size": 4}, 1, 3),
        (4, {"num_train_epochs": 1, "per_device_train_batch_size": 32}, 1, 1),
        (
            4,
            {
                "max_steps": 3,
                "dataloader_drop_last": True,
                "per_device_train_batch_size": 4,
                "accelerator_config": {"split_batches": True},
            },
            2,
            3,
        ),
    ],
)
def test_optimizer_steps(rows: int, training: dict, processes: int, steps: int) -> None:
    assert optimizer_steps(rows, training, processes) == steps


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"num_train_epochs": 5}])
@pytest.mark.parametrize(("rows", "processes"), [(3, 1), (7, 2)])
def test_rows_that_fill_no_batch_are_refused(rows: int, processes: int, length: dict) -> None:
    training = {"dataloader_drop_last": True, "per_device_train_batch_size": 4, **length}
    with pytest.raises(
        BALoraError, match=f"no step: there are {rows} training rows.* takes {4 * processes}, .*drop_last"
    ):
        optimizer_steps(rows, training, processes)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("warmup_ratio", "training.warmup_steps"), ("evaluation_strategy", "training.eval_strategy"),
        ("no_cuda", "training.use_cpu: true"), ("group_by_length", "training.train_sampling_strategy"),
        ("per_gpu_train_batch_size", "training.per_device_train_batch_size"), ("save_safetensors", "leave it out"),
        ("logging_dir", "under runs"), ("overwrite_output_dir", "choose another output"), ("adafactor", "training.optim"),
        ("split_batches", "training.accelerator_config"), ("push_to_hub_token", "not pushed to the hub"),
    ],
)  # fmt: skip
def test_an_argument_of_an_earlier_transformers_names_its_successor(old: str, words: str) -> None:
    with pytest.raises(Problems, match=f"Unknown key training.{old}. ") as found:
        check_training({old: 1})
    assert words in str(found.value) and "Did you mean" not in str(found.value)

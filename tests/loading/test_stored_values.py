"""`check_stored_values`: NaN in weights files is found without loading the model, and what was not read is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from balora.errors import BALoraError
from balora.loading import stored_values
from balora.loading.source import Location, ModelSource


def source(folder: Path, dtype: str = "auto") -> ModelSource:
    return ModelSource(model=Location(str(folder)), dtype=dtype)


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("where", [0, 1234, 9_999])
def test_a_nan_in_any_part_of_a_large_tensor_is_found(tmp_path: Path, monkeypatch, where: int) -> None:
    monkeypatch.setattr(stored_values, "_PART", 4096)
    weight = torch.ones(1000, 10)
    folder = save(tmp_path, a=weight, b=torch.tensor(1.0), c=torch.ones(3, dtype=torch.int64))
    assert stored_values.check_stored_values(source(folder)) is None
    weight.view(-1)[where] = float("nan")
    with pytest.raises(BALoraError, match="contain NaN in a, so every loss would be NaN"):
        stored_values.check_stored_values(source(save(tmp_path, a=weight)))


def test_a_value_that_the_dtype_of_the_run_cannot_hold_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path, a=torch.tensor([1.0, 70_000.0]))
    assert stored_values.check_stored_values(source(folder, "float32")) is None
    with pytest.raises(BALoraError, match=r"infinite values in a.*do not fit into float16"):
        stored_values.check_stored_values(source(folder, "float16"))


def test_of_large_weights_a_part_of_each_tensor_is_read_and_the_rest_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stored_values, "_PART", 4096)
    monkeypatch.setattr(stored_values, "_LARGEST_READ", 20_000)
    first, second = torch.ones(1000, 10), torch.ones(1000, 10)
    folder = save(tmp_path, a=first, b=second)
    note = stored_values.check_stored_values(source(folder))
    assert note is not None and "spread over all tensors, were read to look for NaN" in note
    second[0, 0] = float("nan")
    with pytest.raises(BALoraError, match="NaN in b"):
        stored_values.check_stored_values(source(save(tmp_path, a=first, b=second)))


def test_weights_that_are_not_read_are_said_or_left_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "in pickle form and were not read" in str(stored_values.check_stored_values(source(tmp_path)))
    assert stored_values.check_stored_values(ModelSource(model=Location("owner/name"))) is None

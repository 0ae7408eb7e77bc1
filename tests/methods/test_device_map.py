"""A model that `device_map` has spread: in memory it is adapted, with parts on a disk it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import balora
from balora.errors import BALoraError
from tiny import tiny_llama

PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    return folder


def test_a_model_with_parts_on_a_disk_is_refused(saved: Path, tmp_path: Path):
    places = dict.fromkeys(PARTS, "cpu") | {"model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=places, offload_folder=str(tmp_path))
    with pytest.raises(BALoraError, match=r"device_map has left model\.layers\.1 outside .* Load the model without"):
        balora.adapt(model, method="lora", rank=4)


def test_a_model_in_memory_is_adapted(saved: Path):
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=dict.fromkeys(PARTS, "cpu"))
    assert balora.adapt(model, method="lora", rank=4).active_adapter

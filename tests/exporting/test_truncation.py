"""A lower rank of an exported LoRA: the nearest change, with its error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import balora as library
from balora.errors import BALoraError
from balora.exporting.serving import serving_lines
from balora.exporting.truncation import truncate
from balora.exporting.weights import Change, Factors
from command import Command

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "kept_runs"


def change(*, rank: int = 6, stack: bool = False, magnitude: bool = False) -> Change:
    generator = torch.Generator().manual_seed(0)
    shape = (2,) if stack else ()
    a = torch.randn(*shape, rank, 11, generator=generator, dtype=torch.float64)
    b = torch.randn(*shape, 7, rank, generator=generator, dtype=torch.float64)
    factors = Factors(a, b, 0.5, "w.weight", magnitude_O=torch.ones(7) if magnitude else None)
    return Change({"w": factors}, {}, {}, LoraConfig(r=rank, lora_alpha=rank))


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_cut_is_the_nearest_matrix_and_its_error_is_measured(rank: int, stack: bool) -> None:
    exact = change(stack=stack)
    smaller, cut = truncate(exact, rank)
    delta, found = exact.factors["w"].delta().double(), smaller.factors["w"].delta().double()
    u, values, v = torch.linalg.svd(delta, full_matrices=False)
    nearest = (u[..., :rank] * values[..., None, :rank]) @ v[..., :rank, :]
    assert torch.allclose(found, nearest, atol=1e-5)
    assert smaller.factors["w"].a_RI.shape[-2] == rank
    assert (smaller.config.r, smaller.config.lora_alpha, exact.config.r) == (rank, rank, 6)
    assert cut.error == pytest.approx(float((found - delta).norm() / delta.norm()), rel=1e-4)
    assert cut.worst == pytest.approx(cut.error)


def test_a_change_of_lower_true_rank_loses_nothing() -> None:
    exact = change(rank=2)
    padded = Change({"w": exact.factors["w"].folded(6)}, {}, {}, LoraConfig(r=6, lora_alpha=6))
    assert truncate(padded, 2)[1].error < 1e-6


def test_what_cannot_be_cut_is_refused() -> None:
    for rank in (0, 6, 9):
        with pytest.raises(BALoraError, match="below 6"):
            truncate(change(), rank)
    with pytest.raises(BALoraError, match="DoRA"):
        truncate(change(magnitude=True), 2)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "finished"):
        shutil.copytree(FIXTURE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_cuts_says_the_error_and_how_to_serve(balora: Command, kept: Path) -> None:
    exact = library.export("finished", to="lora", output="exact")
    assert exact.rank is not None
    outcome = balora("export", "finished", "--to", "lora", "--output", "small", "--rank", exact.rank - 1)
    assert outcome.status == 0, outcome.err
    assert f"Rank {exact.rank} was cut to {exact.rank - 1}" in outcome.out
    assert f"vllm serve {kept / 'base'} --enable-lora --max-lora-rank 8 --lora-modules tuned=small" in outcome.out
    weights = load_file("small/adapter_model.safetensors")
    ranks = {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name}
    assert ranks == {exact.rank - 1}
    refused = balora("export", "finished", "--to", "merged", "--output", "m", "--rank", "2")
    assert refused.status == 2
    assert "a merged model has none" in refused.err


def test_serving_a_merged_model(tmp_path: Path) -> None:
    assert serving_lines(tmp_path)[0] == f"vllm serve {tmp_path}"
    assert serving_lines(tmp_path, "classification") == []


@pytest.mark.parametrize("key", ["modules_to_save", "trainable_token_indices"])
def test_a_lora_with_more_than_linear_layers_is_not_for_vllm(tmp_path: Path, key: str) -> None:
    config = {"r": 4, "base_model_name_or_path": "owner/name", key: [1]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lines = serving_lines(tmp_path)
    assert lines[0] == f"balora chat {tmp_path}" and "use --to merged" in lines[1] and "vllm serve" not in lines[1]

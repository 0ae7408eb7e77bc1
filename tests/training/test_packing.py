"""Packed rows (`data.packing`): the examples keep apart, and every part of the loss is that of the single examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from balora import PretrainedTeacher
from balora.config.run_config import RunConfig
from balora.data.collate import CausalCollator, count_packed_tokens
from balora.data.packing import group_by_capacity, pack
from balora.errors import BALoraError
from balora.models.packed_attention import check_packed_attention
from balora.objective import Objective
from balora.training.steps.generation_step import GenerationStep
from command import Command
from every_family import tiny_model
from small_runs import ALL_TERMS, pissa
from tiny import tiny_causal, tiny_gpt2, tiny_llama, token_rows

COLLATE = CausalCollator(pad_token_id=0)


def test_rows_are_filled_and_lose_nothing() -> None:
    lengths = torch.randint(2, 40, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = group_by_capacity(lengths, 64)
    assert sorted(number for group in groups for number in group) == list(range(300))
    assert max(sum(lengths[number] for number in group) for group in groups) <= 64
    assert len(groups) <= 1.02 * -(-sum(lengths) // 64)
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in token_rows(20)]
    packed = pack(Dataset.from_list(rows).select(range(19, -1, -1)), 50)  # a selection has indices of its own
    found = []
    for row in packed:
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        assert all(row["labels"][at] == -100 for at in starts)
        found += [row["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert sorted(found) == sorted(row["input_ids"] for row in rows)
    batch = COLLATE([packed[0], packed[len(packed) - 1]])
    assert int(count_packed_tokens(batch["position_ids"])) == sum(
        len(packed[at]["input_ids"]) for at in (0, len(packed) - 1)
    )


@pytest.mark.parametrize(
    ("make", "path"),
    [(tiny_llama, "fused"), (tiny_gpt2, "plain"), (lambda: tiny_causal("Mistral", sliding_window=6), "fused")],
)
def test_the_loss_is_that_of_the_single_examples(make, path: str) -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in token_rows(9)]
    model = pissa(lambda: make().double()).double()
    teacher = PretrainedTeacher(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    step = GenerationStep(model, Objective(ALL_TERMS, "generation", loss_path=path), teacher)
    weights = {"consistency": 0.5, "diversity": 0.3, "spectral": 0.2, "variance": 0.0}

    def loss_and_gradients(batch):
        labels = batch.pop("labels")
        parts, _, _ = step.train(model, batch, labels, weights, num_items=None, share=1.0)
        model.zero_grad()
        parts.loss.backward()
        return parts, [p.grad.clone() for p in model.parameters() if p.requires_grad]

    packed_rows = pack(Dataset.from_list(rows), 40)
    assert len(packed_rows) < 6
    single, gradients = loss_and_gradients(COLLATE(rows))
    packed, packed_gradients = loss_and_gradients(COLLATE(list(packed_rows)))
    for name in (field.name for field in dataclasses.fields(single)):
        one, other = getattr(single, name), getattr(packed, name)
        if isinstance(one, torch.Tensor):
            assert float((one - other).detach().abs()) <= 1e-5, name
    for one, other in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["mamba", "opt", "bloom"])
def test_a_model_that_mixes_examples_is_refused(family: str) -> None:
    model = tiny_model("causal", family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    with pytest.raises(BALoraError, match=r"data.packing cannot be used: .*Leave it out"):
        check_packed_attention(model)
    check_packed_attention(tiny_llama())
    check_packed_attention(tiny_llama(), rows=1)


def test_a_run_and_its_inspection_pack(balora: Command, config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"packing": True, "max_length": 128}
    config.write_text(yaml.safe_dump(values))
    outcome = balora("inspect", config, "--rows", "1")
    assert outcome.status == 0, outcome.err
    assert "packed row 1, tokens 1-" in outcome.out
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "Packed " in outcome.out
    assert "% full" in outcome.out


def test_what_packing_cannot_do_is_refused() -> None:
    base = {"model": "m", "output": "o", "task": "generation", "data": {"train": "d.jsonl", "text": "t"}}
    for task, data, training, message in (
        ("classification", {"label": "l", "packing": True}, {}, "data.packing is for task generation"),
        ("generation", {"packing": 100}, {}, "data.packing 100 is below data.max_length 512"),
        ("generation", {"packing": "much"}, {}, "data.packing must be true, false, or the number"),
        ("generation", {"packing": True}, {"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
    ):
        with pytest.raises(BALoraError, match=message):
            RunConfig.from_dict({**base, "task": task, "data": {**base["data"], **data}, "training": training})
    assert RunConfig.from_dict({**base, "data": {**base["data"], "packing": 1024}}).data.packing == 1024
    off = {"packing": "off", "streaming": "off"}
    assert (
        RunConfig.from_dict({**base, "task": "regression", "data": {**base["data"], "score": "s", **off}}).data.packing
        is False
    )

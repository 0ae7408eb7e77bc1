"""Whole modules and embeddings of single tokens, trained beside a LoRA."""

from __future__ import annotations

import peft
import pytest
import torch

import balora
from balora.errors import BALoraError
from balora.methods import adapt
from tiny import tiny_gpt2, tiny_llama, token_rows
from trained_runs import batch, logits, trained_run

BOTH = {"modules_to_save": ["norm"], "trainable_token_indices": [*range(50, 4, -1)]}


def trainable(model) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]


def test_the_tensors_are_trained_and_the_teacher_is_the_pretrained_model():
    plain = tiny_llama()
    inputs = batch(plain)
    expected = logits(plain, inputs)
    model = adapt(plain, rank=4, **BOTH)
    assert trainable(model) == [
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default",
        "base_model.model.model.norm.modules_to_save.default.weight",
    ]
    teacher = balora.PretrainedTeacher(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trainable(model):
                parameter.add_(1.0)
    assert not torch.allclose(logits(model, inputs), expected, atol=1e-2)
    with teacher.active():
        torch.testing.assert_close(logits(model, inputs), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["lora", "balora"])
def test_a_run_is_loaded_and_exported(tmp_path, method, tied):
    base = tiny_llama(tie_word_embeddings=tied)
    inputs, rows = batch(base), base.get_input_embeddings().weight[5:51].detach().clone()
    run = trained_run(tmp_path / "run", base, "generation", method=method, options=BOTH)
    expected = logits(run.model, inputs)
    loaded = balora.load(run.folder)
    learnt = {name: p for name, p in run.model.named_parameters() if name in trainable(run.model)}
    assert len(learnt) == 2
    assert not torch.allclose(next(iter(learnt.values())), rows, atol=1e-2), "they have learnt"
    torch.testing.assert_close(logits(loaded, inputs), expected)
    balora.export(run.folder, "lora", output=tmp_path / "lora")
    lora = peft.PeftModel.from_pretrained(type(base).from_pretrained(run.base), tmp_path / "lora")
    torch.testing.assert_close(logits(lora, inputs), expected, atol=1e-3, rtol=1e-3)
    balora.export(run.folder, "merged", output=tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"modules_to_save": ["embd_tokens"]}, r"no module 'embd_tokens' .*Did you mean 'embed_tokens'"),
        ({"modules_to_save": ["embed_tokens"]}, r"same tensor as lm_head\.weight, so a trained copy"),
        ({"trainable_token_indices": [1000]}, "names token 1000, but the model has 97 tokens"),
        ({"modules_to_save": "norm"}, r"method\.modules_to_save is a list of names, not 'norm'"),
        ({"trainable_token_indices": [-1]}, r"method\.trainable_token_indices is a list of whole numbers"),
        ({"method": "full", "modules_to_save": ["norm"]}, "Method 'full' has no option 'modules_to_save'"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, problem):
    model = tiny_llama(tie_word_embeddings=True)
    with pytest.raises(BALoraError, match=problem):
        adapt(model, **{"rank": 4, **options})
    assert not any("modules_to_save" in name or "lora_" in name for name, _ in model.named_parameters())


def test_the_embedding_as_a_whole_and_by_tokens_is_refused():
    with pytest.raises(BALoraError, match=r"trains the whole embedding, so method\.trainable_token_indices has no"):
        adapt(tiny_llama(), rank=4, modules_to_save=["embed_tokens"], trainable_token_indices=[3])


def test_tokens_of_a_model_with_another_name_of_its_embedding():
    model = adapt(tiny_gpt2(), rank=4, trainable_token_indices=[3])
    assert trainable(model) == ["base_model.model.transformer.wte.token_adapter.trainable_tokens_delta.default"]
    loss = model(**{k: torch.tensor([v]) for k, v in token_rows(1)[0].items()}).loss
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trainable(model))

"""The last layer at the targets alone: the loss and every gradient are those of the whole layer."""

from __future__ import annotations

import pytest
import torch

import balora
from balora import PretrainedTeacher, RegularizationConfig
from balora.models.last_layer import LastLayer
from balora.objective import Objective
from balora.training.generation_step import GenerationStep
from tiny import tiny_bart, tiny_causal, tiny_gpt2, tiny_llama

TERMS = RegularizationConfig(
    consistency=0.5, diversity=0.3, spectral=0.2, focus_schedule="constant", consistency_schedule="constant"
)
MODELS = {
    "llama": (tiny_llama, 3),
    "gemma2": (lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5), 3),
    "qwen2": (lambda: tiny_causal("Qwen2"), 3),
    "phi, parallel": (lambda: tiny_causal("Phi"), 2),
    "gpt2": (tiny_gpt2, 1),
}


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 97, (3, 11), generator=generator)
    labels = tokens.clone()
    labels[:, :7] = -100
    mask = torch.ones_like(tokens)
    labels[1, 9:], mask[1, 9:] = -100, 0
    return {"input_ids": tokens, "attention_mask": mask}, labels


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_whole_layer(name):
    make, count = MODELS[name]
    model = balora.adapt(make(), "pissa", rank=4).double().train()
    teacher = PretrainedTeacher(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    found = []
    for skip in (True, False):
        step = GenerationStep(model, Objective(TERMS, "generation"), teacher)
        step.skip_unused = skip
        positions = []
        layer = step._last_layer
        assert len(layer.parts) == count
        hook = layer.parts[-1].register_forward_hook(lambda *_: None)
        inner = next(m for m in layer.parts[-1].modules() if isinstance(m, torch.nn.Linear) or hasattr(m, "nf"))
        inner_hook = inner.register_forward_hook(lambda _, x, y, seen=positions: seen.append(y.shape[:-1].numel()))
        parts, _, _ = step.train(
            model, *batch(), {"consistency": 0.5, "diversity": 0.3, "spectral": 0.2, "variance": 0.0},
            num_items=None, share=1.0,
        )  # fmt: skip
        model.zero_grad()
        parts.loss.backward()
        hook.remove()
        inner_hook.remove()
        assert (positions[-1] < 33) == skip, "the MLP ran at the targets alone"
        found.append([parts.loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        assert "forward" not in layer.parts[-1].__dict__
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_models_whose_layer_cannot_be_split_are_left_alone():
    assert not LastLayer(tiny_bart()).parts
    assert not LastLayer(tiny_causal("Mixtral")).parts


def test_a_layer_that_mixes_positions_is_run_whole():
    model = balora.adapt(tiny_llama(), "pissa", rank=4)
    mlp = LastLayer(model).parts[-1]
    own = mlp.forward
    mlp.forward = lambda x: own(x) + x.mean(1, keepdim=True)
    step = GenerationStep(model, Objective(TERMS, "generation"), PretrainedTeacher(model))
    inputs, labels = batch()
    step.train(
        model,
        inputs,
        labels,
        {"consistency": 0.5, "diversity": 0.0, "spectral": 0.0, "variance": 0.0},
        num_items=None,
        share=1.0,
    )
    assert step._skip_is_exact is False


def test_activation_checkpointing_switches_it_off():
    model = balora.adapt(tiny_llama(), "pissa", rank=4).train()
    layer = LastLayer(model)
    assert layer.usable(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not layer.usable(model)

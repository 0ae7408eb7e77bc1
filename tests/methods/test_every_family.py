"""Every text family of the installed transformers, tiny, at the default target modules.

Each is adapted, takes one step with every term of the objective, gives a gradient to every tensor of the adapter, and computes
the same after its adapter is stored and built again.
"""

from __future__ import annotations

import re

import pytest
import torch

import balora
from balora.methods.layers.peft_lora import adapted_names
from bench import missing_gradients
from every_family import MAPPINGS, text_inputs, tiny_model

QUICK = {
    "causal": [
        "llama", "gpt2", "falcon", "bloom", "gemma2", "phi3", "phimoe", "mixtral", "qwen2_moe", "qwen3_next", "deepseek_v2",
        "deepseek_v3", "deepseek_v32", "glm4_moe", "ernie4_5_moe", "hunyuan_v1_moe", "llama4_text", "jetmoe", "dbrx", "jamba",
        "mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "zamba", "zamba2", "bamba", "granitemoehybrid", "bart",
        "xlnet", "rwkv", "gpt_oss", "gemma3n_text",
    ],
    "seq2seq": ["t5", "bart", "fsmt", "led", "prophetnet", "switch_transformers"],
    "classification": ["bert", "deberta", "deberta-v2", "modernbert", "xlnet", "funnel", "canine", "esm", "qwen2", "jamba", "t5"],
}  # fmt: skip
ODD = {
    "causal": {
        "bailing_hybrid", "blt", "cohere_compass_text", "dots3_note", "emu3", "gemma3n", "gemma4_assistant",
        "gemma4_unified_assistant", "kimi_linear", "lfm2_moe", "llama4", "longcat_flash", "musicgen", "musicgen_melody",
        "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen4_exp_text", "reformer", "roc_bert",
    },
    "seq2seq": {"nemo_speechlm", "vibevoice_asr", "voxtral_realtime"},
    "classification": {"cohere_compass_text", "layoutlmv2", "layoutlmv3", "lilt", "luke", "perceiver", "reformer", "roc_bert"},
}  # fmt: skip
"""Families that `tiny_model` cannot make tiny, or that need another package or other inputs than text; Reformer's layers need
``enable_input_require_grads``."""
REFUSED = {
    "ibert": "has no linear layer below its head",
}
"""Families that are refused, with a part of the message."""
NOT_ADAPTED = {"canine": "final_char_encoder"}
"""Layers without a gradient of a family whose vocabulary is not in its config, so that `adapt` cannot run it."""


def check(kind: str, family: str) -> None:
    make = lambda: tiny_model(kind, family)  # noqa: E731
    batch = text_inputs(make())
    torch.manual_seed(0)
    model = balora.adapt(make(), rank=2)
    initial = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    known = NOT_ADAPTED.get(family)
    assert [name for name in missing_gradients(model.train(), batch) if known is None or known not in name] == []
    again = balora.adapt(make(), rank=2, initial=initial)
    assert adapted_names(again) == adapted_names(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        found, expected = (m.eval()(**inputs).logits for m in (again, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "family"), [(kind, family) for kind, names in QUICK.items() for family in names])
def test_a_family_trains_at_the_default_targets(kind, family):
    check(kind, family)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [(kind, f) for kind, names in MAPPINGS.items() for f in names if f not in QUICK[kind] and f not in ODD[kind]],
)
def test_every_other_family_trains_at_the_default_targets_or_is_refused_in_a_sentence(kind, family):
    try:
        check(kind, family)
    except balora.BALoraError as error:
        expected = REFUSED.get(family, "neither a causal nor a sequence-to-sequence|needs decoder_input_ids")
        assert re.search(expected, str(error)), error

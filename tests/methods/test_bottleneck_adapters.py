"""Houlsby adds adapters after both sub-layers of every block; a model in which it finds only one of them is refused."""

from __future__ import annotations

import pytest
import transformers
from torch import nn

import balora
from balora import BALoraError
from balora.methods.layers.bottleneck_adapters import AFTER_ATTENTION, AFTER_FEED_FORWARD, _check_blocks

_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
_GPTJ = {
    "n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip

BLOCKS = {
    "phi": (
        lambda: transformers.PhiForCausalLM(transformers.PhiConfig(intermediate_size=64, **_SMALL)),
        ["model.layers.0.mlp.fc2", "model.layers.0.self_attn.dense"],
    ),
    "gptj": (
        lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig(**_GPTJ)),
        ["transformer.h.0.attn.out_proj", "transformer.h.0.mlp.fc_out"],
    ),
    "codegen": (
        lambda: transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**_GPTJ)),
        ["transformer.h.0.attn.out_proj", "transformer.h.0.mlp.fc_out"],
    ),
    "mpnet": (
        lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(intermediate_size=64, **_SMALL)),
        ["mpnet.encoder.layer.0.attention.attn.o", "mpnet.encoder.layer.0.output.dense"],
    ),
    "distilbert": (
        lambda: transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=64)
        ),
        ["distilbert.transformer.layer.0.attention.out_lin", "distilbert.transformer.layer.0.ffn.lin2"],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_both_sub_layers_of_a_block_get_an_adapter(name: str) -> None:
    make, expected = BLOCKS[name]
    model = balora.adapt(make(), method="houlsby", rank=2)
    found = [key.removesuffix(".bottleneck") for key, _ in model.named_modules() if key.endswith(".bottleneck")]
    assert sorted(found) == expected


@pytest.mark.parametrize("kind", ["attention", "feed-forward"])
def test_a_block_with_an_unknown_sub_layer_is_refused(kind: str) -> None:
    ends = {"attention": "model.layers.0.self_attn.o_proj", "feed-forward": "model.layers.0.mlp.down_proj"}
    names = [name for ending, name in ends.items() if ending != kind]
    with pytest.raises(BALoraError, match=rf"The last layer of the {kind} sub-layer in model\.layers\.0 .* is unknown"):
        _check_blocks(nn.Module(), names, [AFTER_ATTENTION, AFTER_FEED_FORWARD])


def test_a_model_with_its_own_bottleneck_layers_is_refused() -> None:
    model = transformers.MobileBertForMaskedLM(transformers.MobileBertConfig(num_hidden_layers=1, vocab_size=64))
    with pytest.raises(BALoraError, match="already has bottleneck layers"):
        balora.adapt(model, method="houlsby", rank=2)

"""Number and names of the trainable parameters of each method, compared with formulas."""

from __future__ import annotations

import pytest

import balora
from balora.methods import METHODS
from balora.methods.layers.peft_lora import lora_layers, weight_shape
from bench import adapted
from families import FAMILIES, tiny_deberta
from tiny import tiny_bart, tiny_bert, tiny_gpt2, tiny_llama, tiny_roberta, tiny_t5

R, R0 = 4, 6  # rank, and AdaLoRA's rank before pruning
D, F, L, V, CLASSES = 32, 48, 2, 97, 3
HEAD = CLASSES * D + CLASSES

# (out, in) of every matrix in all-linear: four of attention, two of the feed-forward layer, and BERT's pooler.
BERT = L * [*[(D, D)] * 4, (F, D), (D, F)] + [(D, D)]
# Two key heads of size eight; the feed-forward layer has a gate.
LLAMA = L * [(D, D), (16, D), (16, D), (D, D), (F, D), (F, D), (D, F)]

PER_MATRIX = {
    **{
        method: lambda o, i: R * (o + i)
        for method in (
            *("lora", "rslora", "loraplus", "loraga", "pissa", "balora", "milora", "olora", "corda"),
            *("qlora", "qpissa", "qbalora", "dft", "asft"),
        )
    },
    "lorafa": lambda o, i: R * o,  # only B
    "dora": lambda o, i: R * (o + i) + o,  # plus one magnitude per output
    "adalora": lambda o, i: R0 * (o + i + 1),  # P, Q and Λ, before pruning
}  # fmt: skip
BOTTLENECK = (D * R + R) + (R * D + D)
NORM = 2 * D
BERT_FORMULAS = {
    **{method: sum(count(*shape) for shape in BERT) + HEAD for method, count in PER_MATRIX.items()},
    # Word, position and type embeddings and their norm; in each block six layers with biases and two norms.
    "full": (V + 512 + 2) * D + NORM + L * (4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * NORM) + (D * D + D) + HEAD,
    "bitfit": D + L * (4 * D + F + D + 2 * D) + D + HEAD,
    "houlsby": L * 2 * BOTTLENECK + (1 + 2 * L) * NORM + HEAD,
    "pfeiffer": L * BOTTLENECK + HEAD,
}  # fmt: skip
LLAMA_FORMULAS = {
    **{method: sum(count(*shape) for shape in LLAMA) for method, count in PER_MATRIX.items()},
    "full": 2 * V * D + sum(o * i for o, i in LLAMA) + (1 + 2 * L) * D,
    "houlsby": L * 2 * BOTTLENECK + (1 + 2 * L) * D,  # its layer norms have no bias
    "pfeiffer": L * BOTTLENECK,
}


def count(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"cordapp"}))
def test_number_of_trainable_parameters_of_a_classifier(method):
    assert count(adapted(tiny_bert, method, rank=R)) == BERT_FORMULAS[method]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"cordapp", "bitfit"}))
def test_number_of_trainable_parameters_of_a_language_model(method):
    assert count(adapted(tiny_llama, method, rank=R)) == LLAMA_FORMULAS[method]


def test_only_the_named_targets_are_trained():
    model = balora.adapt(tiny_llama(), rank=R, target_modules=["q_proj", "v_proj"])
    assert count(model) == L * (R * (D + D) + R * (16 + D))


def test_uneven_ranks_use_the_whole_budget_and_no_more():
    model = adapted(tiny_llama, "cordapp", rank=R)
    ranks = {name: layer.r["default"] for name, layer in lora_layers(model)}
    shapes = {name: weight_shape(layer) for name, layer in lora_layers(model)}
    budget = sum(R * (o + i) for o, i in LLAMA)
    assert count(model) == sum(rank * sum(shapes[name]) for name, rank in ranks.items())
    assert budget - min(o + i for o, i in LLAMA) < count(model) <= budget
    assert len(set(ranks.values())) > 2, "the ranks are uneven"


EXPERTS, MIXTRAL = 4, L * [(D, D), (16, D), (16, D), (D, D)]


def test_each_expert_has_its_own_factors():
    # Attention, and in every expert the fused gate and up (96 × 32) and down (32 × 48). The router has no adapter.
    expected = sum(R * (o + i) for o, i in MIXTRAL) + L * EXPERTS * R * ((2 * F + D) + (D + F))
    assert count(adapted(FAMILIES["Mixtral"], "pissa", rank=R)) == expected


# -- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "DeBERTa-v3", "GPT-2", "BART", "Qwen1.5/2", "Qwen1.5/2-MoE"])
def test_bitfit_trains_only_biases_and_heads(family):
    model = adapted(FAMILIES[family], "bitfit")
    head = {name for name, _ in model.named_parameters() if name.startswith(("classifier", "score"))}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith(".bias")} | head
    assert trained - head


ATTENTION, FEED_FORWARD = "attention", "feed-forward"
BLOCK_MODELS = {
    "bert": (tiny_bert, "bert.encoder.layer.{}", {ATTENTION: ["attention.output.dense"], FEED_FORWARD: ["output.dense"]}),
    "roberta": (tiny_roberta, "roberta.encoder.layer.{}", {ATTENTION: ["attention.output.dense"], FEED_FORWARD: ["output.dense"]}),
    "deberta": (tiny_deberta, "deberta.encoder.layer.{}", {ATTENTION: ["attention.output.dense"], FEED_FORWARD: ["output.dense"]}),
    "llama": (tiny_llama, "model.layers.{}", {ATTENTION: ["self_attn.o_proj"], FEED_FORWARD: ["mlp.down_proj"]}),
    "gpt2": (tiny_gpt2, "transformer.h.{}", {ATTENTION: ["attn.c_proj"], FEED_FORWARD: ["mlp.c_proj"]}),
}  # fmt: skip
# One block each; the decoder block also has cross-attention.
SUB_LAYERS = {
    "t5": (tiny_t5, {
        ATTENTION: ["encoder.block.0.layer.0.SelfAttention.o", "decoder.block.0.layer.0.SelfAttention.o",
                    "decoder.block.0.layer.1.EncDecAttention.o"],
        FEED_FORWARD: ["encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo"],
    }),
    "bart": (tiny_bart, {
        ATTENTION: ["model.encoder.layers.0.self_attn.out_proj", "model.decoder.layers.0.self_attn.out_proj",
                    "model.decoder.layers.0.encoder_attn.out_proj"],
        FEED_FORWARD: ["model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2"],
    }),
}  # fmt: skip
for _name, (_make, _block, _parts) in BLOCK_MODELS.items():
    _targets = {
        part: [f"{_block.format(i)}.{name}" for i in range(L) for name in names] for part, names in _parts.items()
    }
    SUB_LAYERS[_name] = (_make, _targets)


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("family", SUB_LAYERS)
def test_bottleneck_adapters_follow_each_sub_layer(family, method):
    make, targets = SUB_LAYERS[family]
    model = adapted(make, method, rank=R)
    found = {name.removesuffix(".bottleneck") for name, _ in model.named_modules() if name.endswith(".bottleneck")}
    expected = targets[FEED_FORWARD] + (targets[ATTENTION] if method == "houlsby" else [])
    assert found == set(expected)
    norms = {n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    learning = {n for n in norms if all(p.requires_grad for p in model.get_submodule(n).parameters())}
    assert norms and learning == (norms if method == "houlsby" else set())

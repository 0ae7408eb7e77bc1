from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import balora
from balora import BALoraError
from balora.methods import METHODS
from balora.methods.initial_state import stored_parameters
from balora.methods.layers.peft_lora import lora_layers
from bench import UNROUNDED, adapt_with_all, adapted
from tiny import tiny_bart, tiny_bert, tiny_causal, tiny_gpt2, tiny_llama, tiny_roberta, tiny_t5

FAMILIES = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "bert-regression": lambda: tiny_bert(num_labels=1),
    "roberta": tiny_roberta,
    "bart": tiny_bart,
    "t5": tiny_t5,
    "gemma2": lambda: tiny_causal("Gemma2"),
}
WITHOUT_BIASES = ("llama", "t5", "gemma2")
EXACT = ("pissa", "qpissa", "balora", "qbalora", "milora", "olora", "loraga", "corda", "cordapp")
LOW_RANK = [name for name, method in METHODS.items() if method.low_rank]


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(4, 97, (2, 11), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens.flip(1)
    model.eval()
    with torch.no_grad():
        return model(**inputs).logits.double()


@pytest.mark.parametrize("method", sorted(UNROUNDED))
@pytest.mark.parametrize("family", FAMILIES)
def test_adapting_does_not_change_the_function(family, method):
    if method == "bitfit" and family in WITHOUT_BIASES:
        pytest.skip("the model has no biases, so bitfit refuses it")
    expected = logits(FAMILIES[family]())
    found = logits(adapted(FAMILIES[family], method, rank=5, alpha=10))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("method", sorted(UNROUNDED))
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma2"])
def test_adapting_does_not_change_the_function_in_bfloat16(family, method):
    """Equal to the bit if the frozen weights stay the same, else within 3 % of the logits (bfloat16 alone changes 1 %)."""
    if method == "bitfit" and family in WITHOUT_BIASES:
        pytest.skip("the model has no biases, so bitfit refuses it")
    rounded = FAMILIES[family]().bfloat16()
    plain, exact = logits(rounded), logits(rounded.float())
    model = adapted(lambda: FAMILIES[family]().bfloat16(), method, rank=5, alpha=10)
    off = (logits(model) - plain).square().mean().sqrt()
    if method in EXACT or method == "dora":  # DoRA divides and multiplies by a norm
        assert 0 < off <= 0.03 * exact.square().mean().sqrt()
    else:
        assert off == 0
    # Compare the stored weights without bfloat16 arithmetic.
    assert (logits(model.float()) - exact).square().mean().sqrt() <= 0.02 * exact.square().mean().sqrt()


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_and_heads_are_trainable(family, method):
    model = adapted(FAMILIES[family], method)
    layers = list(lora_layers(model))
    assert layers
    frozen = ".lora_A." if method == "lorafa" else "ranknum"
    for name, parameter in model.named_parameters():
        in_head = "modules_to_save" in name
        assert parameter.requires_grad == (("lora_" in name or in_head) and frozen not in name), name
    for name, _ in layers:
        assert not name.startswith(("lm_head", "classifier", "score")), name


def test_full_trains_everything():
    model = balora.adapt(tiny_llama(), method="full")
    assert not isinstance(model, PeftModel)
    assert all(p.requires_grad for p in model.parameters())


def test_robertas_two_layer_head_is_trained_without_an_adapter():
    model = balora.adapt(
        tiny_roberta(), rank=8
    )  # more than the 3 outputs of out_proj, so adapting out_proj would be an error
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "classifier" in name}
    prefix = "base_model.model.classifier.modules_to_save.default"
    assert trained == {f"{prefix}.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")}
    assert not [name for name, _ in lora_layers(model) if "classifier" in name]


@pytest.mark.parametrize("method", LOW_RANK)
def test_initial_values_depend_only_on_the_seed(method):
    def initial_values(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        return torch.cat([p.detach().flatten() for _, p in stored_parameters(adapted(tiny_llama, method, seed=seed))])

    assert torch.equal(initial_values(0, 1), initial_values(0, 2))
    # An exact decomposition uses no random numbers.
    assert torch.equal(initial_values(0, 1), initial_values(1, 1)) == (method in EXACT)


def test_the_global_generator_is_unchanged():
    state = torch.random.get_rng_state()
    balora.adapt(tiny_llama(), method="lora", rank=4)
    assert torch.equal(state, torch.random.get_rng_state())


def test_alpha_defaults_to_the_rank():
    _, layer = next(lora_layers(balora.adapt(tiny_llama(), rank=6)))
    assert layer.scaling["default"] == 1.0


def test_dropout_is_applied_in_the_adapter():
    _, layer = next(lora_layers(balora.adapt(tiny_llama(), rank=6, dropout=0.25)))
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("target", [["q_proj"], r".*\.q_proj", "q_proj"])
def test_targets_by_name_or_regular_expression(target):
    try:
        model = balora.adapt(tiny_llama(), rank=4, target_modules=target)
    except BALoraError:
        assert target == "q_proj"  # a string is one regular expression over the whole name
        return
    assert {name.rsplit(".", 1)[-1] for name, _ in lora_layers(model)} == {"q_proj"}


@pytest.mark.parametrize(
    ("settings", "sentences"),
    [
        ({"rank": 0}, ["method.rank is a whole number of at least 1, not 0"]),
        ({"rank": -3}, ["method.rank", "not -3"]),
        ({"rank": 2.5}, ["method.rank", "not 2.5"]),
        ({"rank": True}, ["method.rank"]),
        ({"alpha": 0}, ["method.alpha must be above 0, not 0"]),
        ({"alpha": float("nan")}, ["method.alpha"]),
        ({"dropout": 1.0}, ["method.dropout"]),
        ({"target_modules": []}, ["method.target_modules is empty"]),
        ({"svd_iteratons": 3}, ["has no option 'svd_iteratons'", "Did you mean 'svd_iterations'?"]),
        ({"method": "lora", "svd": "exact"}, ["Method 'lora' has no option 'svd'"]),
        ({"method": "pisa"}, ["There is no method 'pisa'", "Did you mean 'pissa'?", "lora, lorafa, loraga"]),
        ({"rank": 0, "alpha": -1, "dropout": 2}, ["3 problems", "method.rank", "method.alpha", "method.dropout"]),
    ],
)
def test_arguments_are_checked_before_the_model_is_changed(settings, sentences):
    model = tiny_llama()
    with pytest.raises(BALoraError) as caught:
        balora.adapt(model, **settings)
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert not hasattr(model, "peft_config")


def test_an_invalid_rank_is_not_also_an_invalid_alpha():
    with pytest.raises(BALoraError) as caught:
        balora.adapt(tiny_llama(), rank=0)
    assert "alpha" not in str(caught.value)


@pytest.mark.parametrize("method", LOW_RANK)
def test_a_rank_above_a_target_is_refused_and_the_model_is_unchanged(method):
    model = tiny_llama()
    names, expected = [name for name, _ in model.named_modules()], logits(model)
    with pytest.raises(BALoraError, match=r"Rank 33 is too high for .*q_proj is 32 × 32, so its rank is at most 32"):
        adapt_with_all(model, method, **({"rank": 22, "initial_rank": 33} if method == "adalora" else {"rank": 33}))
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(logits(model), expected)
    assert all(p.requires_grad for p in model.parameters()), "the flags are restored after peft froze the parameters"
    adapt_with_all(model, method, rank=4)  # a second attempt with a lower rank works


def test_the_smaller_side_limits_the_rank():
    # k_proj is 16 × 32 here: two key heads of eight.
    with pytest.raises(BALoraError, match=r"Rank 17 .*k_proj is 16 × 32, so its rank is at most 16"):
        balora.adapt(tiny_llama(), rank=17, target_modules=["q_proj", "k_proj"])
    balora.adapt(tiny_llama(), rank=17, target_modules=["q_proj"])


@pytest.mark.parametrize("target", [["q_prj"], ["model.q_prj"], "q_prj"])
def test_targets_without_a_match_are_refused_with_the_available_names(target):
    model = tiny_llama()
    with pytest.raises(BALoraError) as caught:
        balora.adapt(model, rank=4, target_modules=target)
    message = str(caught.value)
    assert "matches no layer" in message and "The layers are down_proj, gate_proj, k_proj" in message
    if "model" not in target[0]:
        assert "Did you mean 'q_proj'?" in message
    assert not any("lora" in name for name, _ in model.named_modules())
    balora.adapt(model, rank=4)


def test_a_single_layer_name_as_string_gets_a_hint_to_write_a_list():
    with pytest.raises(BALoraError, match=r"A string is a regular expression over full names; .* write \[q_proj\]\."):
        balora.adapt(tiny_llama(), rank=4, target_modules="q_proj")


def test_an_adapted_model_is_refused():
    model = balora.adapt(tiny_llama(), rank=4)
    for again in (model, model.get_base_model()):
        with pytest.raises(BALoraError, match="already has an adapter"):
            balora.adapt(again, rank=4)


def test_full_fine_tuning_loads_a_stored_head():
    first = balora.adapt(tiny_bert(seed=1), method="full")
    head = {name: p.detach().clone() for name, p in first.named_parameters() if name.startswith("classifier")}
    again = balora.adapt(tiny_bert(seed=2), method="full", initial=head)
    assert torch.equal(again.classifier.weight, first.classifier.weight)
    assert not torch.equal(again.bert.pooler.dense.weight, first.bert.pooler.dense.weight)


@pytest.mark.parametrize("method", LOW_RANK)
def test_a_stored_head_replaces_the_head_of_the_loaded_model(method):
    first = adapted(tiny_bert, method)
    initial = {name: p.detach().clone() for name, p in stored_parameters(first)}
    head = "base_model.model.classifier.modules_to_save.default.weight"
    initial[head] = initial[head] + 1.0  # as a fitted head would differ
    fresh = tiny_bert()
    fresh.classifier.reset_parameters()
    again = adapt_with_all(fresh, method, initial=initial)
    assert torch.equal(again.get_parameter(head), initial[head])

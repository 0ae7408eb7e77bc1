"""Every method trains the classification head without an adapter, for all of transformers' names of its modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

import balora
from balora import BALoraError
from balora.methods.initial_state import stored_parameters
from balora.methods.layers.peft_lora import lora_layers
from balora.models.classifier_head import final_linear
from tiny import tiny_bart, tiny_bert, tiny_t5


def bart_classifier() -> transformers.BartForSequenceClassification:
    return seeded(transformers.BartForSequenceClassification, tiny_bart().config)


def t5_classifier() -> transformers.T5ForSequenceClassification:
    return seeded(transformers.T5ForSequenceClassification, tiny_t5().config)


def distilbert() -> transformers.DistilBertForSequenceClassification:
    config = transformers.DistilBertConfig(
        vocab_size=97,
        dim=32,
        n_layers=1,
        n_heads=4,
        hidden_dim=48,
        dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=0,
    )
    return seeded(transformers.DistilBertForSequenceClassification, config)


def seeded(kind: type, config: transformers.PretrainedConfig):
    torch.manual_seed(0)
    config.num_labels = 3
    return kind(config).eval()


@dataclasses.dataclass(frozen=True)
class Family:
    make: Callable[[], transformers.PreTrainedModel]
    heads: tuple[str, ...]
    attention: list[str]


FAMILIES = {
    "bart": Family(bart_classifier, ("classification_head",), ["q_proj", "v_proj"]),
    "t5": Family(t5_classifier, ("classification_head",), ["q", "v"]),
    "distilbert": Family(distilbert, ("pre_classifier", "classifier"), ["q_lin", "v_lin"]),
}


def trained_in_head(model: nn.Module, heads: tuple[str, ...]) -> set[str]:
    """Names of the trainable parameters in the head, as in the pre-trained model."""
    names = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return {name for name in names if name.startswith(heads)}


@pytest.mark.parametrize("method", ["lora", "pissa", "dora", "bitfit", "full"])
@pytest.mark.parametrize("named", [False, True], ids=["all-linear", "attention"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_is_trained_without_an_adapter(name: str, named: bool, method: str) -> None:
    if (name, method) == ("t5", "bitfit"):
        pytest.skip("the model has no biases below the head, so bitfit refuses it")
    family = FAMILIES[name]
    model = family.make()
    head = {key for key, _ in model.named_parameters() if key.startswith(family.heads)}
    model = balora.adapt(model, method=method, rank=4, target_modules=family.attention if named else "all-linear")
    assert trained_in_head(model, family.heads) == head
    assert not [layer for layer, _ in lora_layers(model) if layer.startswith(family.heads)]


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_heads_get_no_bottleneck_adapter(name: str, method: str) -> None:
    family = FAMILIES[name]
    model = family.make()
    head = {key for key, _ in model.named_parameters() if key.startswith(family.heads)}
    assert trained_in_head(balora.adapt(model, method=method, rank=4), family.heads) == head


@pytest.mark.parametrize("name", FAMILIES)
def test_final_linear_is_the_layer_that_returns_the_logits(name: str) -> None:
    model = balora.adapt(FAMILIES[name].make(), rank=4)
    assert final_linear(model).out_features == 3
    assert final_linear(model).weight.requires_grad


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_head_is_loaded(name: str, method: str) -> None:
    first = balora.adapt(FAMILIES[name].make(), method=method, rank=4)
    initial = {key: value.detach().clone() for key, value in stored_parameters(first)}
    fresh = FAMILIES[name].make()
    with torch.no_grad():
        fresh.get_submodule(FAMILIES[name].heads[0]).apply(lambda m: m.weight.zero_() if hasattr(m, "weight") else None)
    again = balora.adapt(fresh, method=method, rank=4, initial=initial)
    torch.testing.assert_close(final_linear(again).weight, final_linear(first).weight)


def test_targets_only_in_the_head_are_refused() -> None:
    with pytest.raises(
        BALoraError, match=r"only classifier, a part of the classification head.*Name layers below the head: dense"
    ):
        balora.adapt(tiny_bert(), rank=2, target_modules=["classifier"])

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
from balora.data.collate import make_collator
from balora.methods.initial_state import stored_parameters
from balora.methods.layers.peft_lora import lora_layers
from balora.models.classifier_head import final_linear, padding_side
from small_runs import trainer
from tiny import labelled_rows, tiny_bart, tiny_bert, tiny_t5, tiny_tokenizer


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


def tiny_xlnet(labels: int = 3):
    config = transformers.XLNetConfig(
        vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48, num_labels=labels, dropout=0.0, summary_last_dropout=0.0
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.XLNetForSequenceClassification(config).eval()


def tiny_xlm(labels: int = 3, kind: str = "XLM"):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=97, emb_dim=32, n_layers=2, n_heads=4, num_labels=labels, dropout=0.0, attention_dropout=0.0,
        max_position_embeddings=64, summary_first_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (tiny_xlnet, {"logits_proj", "sequence_summary"}),
        (tiny_xlm, {"sequence_summary"}),
        (lambda: tiny_xlm(kind="Flaubert"), {"sequence_summary"}),
    ],
    ids=["XLNet", "XLM", "FlauBERT"],
)
def test_a_head_with_a_summary_is_trained_saved_and_exported(make, head, tmp_path):
    make().save_pretrained(tmp_path / "base")
    model = balora.adapt(type(make()).from_pretrained(tmp_path / "base"), rank=4)
    trained = {
        name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name
    }
    assert trained == head
    run = trainer(model, tmp_path / "run", config=None, rows=labelled_rows(), learning_rate=3e-2)
    run.train()
    run.save_model(str(tmp_path / "final"))
    tokens = torch.arange(4, 12)[None]
    with torch.no_grad():
        expected = run.model.eval()(tokens).logits
        assert torch.equal(balora.load(tmp_path / "final").eval()(tokens).logits, expected)
    assert balora.export(tmp_path / "final", "lora", output=tmp_path / "out").agreement.holds


def test_xlnet_is_padded_on_the_left_because_it_reads_the_last_position():
    model = tiny_xlnet()
    rows = [{"input_ids": [5, 6, 7], "labels": 0}, {"input_ids": list(range(10, 20)), "labels": 1}]
    collate = make_collator("classification", tiny_tokenizer(), model)
    batch = collate(rows)
    with torch.no_grad():
        alone = model(**{k: v for k, v in collate(rows[:1]).items() if k != "labels"}).logits
        together = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    assert padding_side(balora.adapt(model, rank=2)) == "left"
    assert padding_side(tiny_xlm()) == "right"

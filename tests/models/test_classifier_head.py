from __future__ import annotations

import pytest
import torch
import transformers

import balora
from balora import BALoraError
from balora.models.classifier_head import final_linear, pooled_features
from tiny import tiny_bert, tiny_llama, tiny_roberta


def llama_classifier(**settings) -> transformers.LlamaForSequenceClassification:
    config = tiny_llama().config
    config.num_labels = 3
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


CLASSIFIERS = {"bert": tiny_bert, "roberta": tiny_roberta, "llama": llama_classifier}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_final_layer_maps_the_pooled_features_to_the_logits(name, adapted):
    model = CLASSIFIERS[name]()
    if adapted:
        model = balora.adapt(model, rank=4)
        for parameter in model.parameters():  # so that peft's trained copy of the head differs from the original
            if parameter.requires_grad:
                parameter.data.add_(0.1)
    tokens = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    inputs = {"input_ids": tokens, "attention_mask": tokens.ne(0).long()}
    with pooled_features(model, inputs) as recorded:
        logits = model(**inputs).logits
    features = recorded[-1]
    assert features.shape == (2, 32)
    assert features.requires_grad
    head = final_linear(model)
    assert head.out_features == 3
    torch.testing.assert_close(head(features), logits, atol=1e-6, rtol=1e-5)


def test_a_decoder_pools_the_last_token_with_padding_on_either_side():
    model = llama_classifier()
    for row in ([10, 11, 12, 0, 0], [0, 0, 10, 11, 12]):
        tokens = torch.tensor([row, [5, 6, 7, 8, 9]])
        inputs = {"input_ids": tokens, "attention_mask": tokens.ne(0).long()}
        with pooled_features(model, inputs) as recorded:
            logits = model(**inputs).logits
        torch.testing.assert_close(model.score(recorded[-1]), logits, atol=1e-6, rtol=1e-5)


def test_a_decoder_without_a_padding_token_pools_the_last_position():
    model = llama_classifier(pad_token_id=None)
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with pooled_features(model, {"input_ids": tokens}) as recorded:
        logits = model(input_ids=tokens).logits
    torch.testing.assert_close(model.score(recorded[-1]), logits, atol=1e-6, rtol=1e-5)


def test_the_hook_is_removed_after_an_error():
    model = tiny_bert()
    tokens = torch.tensor([[5, 6, 7]])
    with pytest.raises(RuntimeError, match="inside"), pooled_features(model, {}) as recorded:
        raise RuntimeError("inside")
    model(tokens)
    assert recorded == []


def test_a_model_without_a_head_is_refused():
    with pytest.raises(BALoraError, match="LlamaForCausalLM has no classification head named"):
        final_linear(tiny_llama())

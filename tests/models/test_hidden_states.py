"""Hidden states and LinearHead against the model's own logits, for every kind of head in the model families."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import balora
from balora import BALoraError, PretrainedTeacher, RegularizationConfig
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.objective import Objective
from balora.training.steps.generation_step import GenerationStep
from balora.training.trainer_checks import initial_divergence
from tiny import tiny_bart, tiny_bert, tiny_causal, tiny_gpt2, tiny_llama, tiny_t5

STRONG = RegularizationConfig(
    consistency=0.5, diversity=0.3, spectral=0.2, focus_schedule="constant", consistency_schedule="constant"
)


def bart_with_offset() -> nn.Module:
    model = tiny_bart()
    model.final_logits_bias.copy_(torch.randn(1, 97, generator=torch.Generator().manual_seed(5)))
    return model


def pissa(make) -> nn.Module:
    return balora.adapt(make(), rank=4)


def adapted_head() -> nn.Module:
    """Model with a LoRA on an untied output layer."""
    return balora.adapt(tiny_llama(tie_word_embeddings=False), rank=4, target_modules=["q_proj", "lm_head"])


def copied_head() -> nn.Module:
    """Model in which peft trains a copy of the output layer."""
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(tie_word_embeddings=False), settings)


MODELS = {
    "llama": lambda: pissa(tiny_llama),
    "llama tied": lambda: pissa(lambda: tiny_llama(tie_word_embeddings=True)),
    "mistral": lambda: pissa(lambda: tiny_causal("Mistral")),
    "gemma": lambda: pissa(lambda: tiny_causal("Gemma")),
    "gemma2, cap": lambda: pissa(lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5)),
    "qwen2": lambda: pissa(lambda: tiny_causal("Qwen2")),
    "mixtral": lambda: balora.adapt(tiny_causal("Mixtral"), rank=4, target_modules=["q_proj", "v_proj"]),
    "gpt2": lambda: pissa(tiny_gpt2),
    "cohere, scale": lambda: pissa(lambda: tiny_causal("Cohere", logit_scale=0.25)),
    "granite, scale": lambda: pissa(lambda: tiny_causal("Granite", logits_scaling=4.0)),
    "phi, bias": lambda: pissa(lambda: tiny_causal("Phi")),
    "bart, offset": lambda: pissa(bart_with_offset),
    "t5, tied and scaled": lambda: pissa(tiny_t5),
    "adapted head": adapted_head,
    "copied head": copied_head,
    "full": lambda: balora.adapt(tiny_llama(), method="full"),
}


def batch(model: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 97, (3, 9), generator=generator)
    labels = torch.randint(4, 97, (3, 9), generator=generator)
    labels[:, :3] = -100
    labels[1, 6:] = -100
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens.flip(1)
    return inputs, labels


def push(model: nn.Module) -> None:
    """Change all trainable tensors, as training steps would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_head_give_the_models_logits(name):
    model = MODELS[name]()
    push(model)
    inputs, _ = batch(model)
    expected = model(**inputs).logits
    extractor = HiddenStateExtractor(model)
    hidden, outputs = extractor.hidden_states(model, inputs)
    assert outputs.logits.numel() == 0, "no logits are computed"
    found = extractor.head().logits(hidden)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert extractor.head_matches(model, inputs)
    assert torch.equal(model(**inputs).logits, expected), "the model is unchanged"


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_path_equals_the_plain_path(name):
    model = MODELS[name]()
    teacher = PretrainedTeacher(model)
    push(model)
    inputs, labels = batch(model)
    task = "seq2seq" if model.config.is_encoder_decoder else "generation"
    results = {}
    for path in ("plain", "fused"):
        objective = Objective(STRONG, task, loss_path=path)
        step = GenerationStep(model, objective, teacher)
        parts, _, _ = step.train(model, inputs, labels, objective.weights(0.5), num_items=torch.tensor(20), share=0.5)
        model.zero_grad()
        parts.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        results[path] = parts, gradients
        assert step._fused == (path == "fused"), "the requested path was used"
    (plain, expected), (fused, found) = results["plain"], results["fused"]
    for part in ("loss", "task", "consistency", "diversity", "spectral"):
        found_value, expected_value = (float(getattr(parts, part).detach()) for parts in (fused, plain))
        assert found_value == pytest.approx(expected_value, rel=1e-5, abs=1e-6), part
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    assert size > 1e-2
    for tensor, gradient in expected.items():
        assert (found[tensor] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * size, tensor


def test_mixtures_of_experts_keep_their_balancing_loss():
    model = balora.adapt(tiny_causal("Mixtral", output_router_logits=True), rank=4, target_modules=["q_proj"])
    teacher = PretrainedTeacher(model)
    inputs, labels = batch(model)
    objective = Objective(RegularizationConfig.off(), "generation")
    parts, _, outputs = GenerationStep(model, objective, teacher).train(
        model, inputs, labels, objective.weights(0.0), num_items=None, share=0.5
    )
    assert float(outputs.aux_loss) > 0
    expected = parts.task + 0.5 * model.config.router_aux_loss_coef * outputs.aux_loss
    assert float(parts.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2, cap", "adapted head", "bart, offset", "full"])
def test_the_fused_path_in_bfloat16(name):
    """The adapter is float32 on a bfloat16 model; an adapted head has both dtypes."""
    make = {
        "gemma2, cap": lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5),
        "bart, offset": bart_with_offset,
    }.get(name, lambda: tiny_llama(tie_word_embeddings=False))
    targets = ["q_proj", "lm_head"] if name == "adapted head" else "all-linear"
    method = "full" if name == "full" else "balora"
    model = balora.adapt(make().bfloat16(), method=method, rank=4, target_modules=targets)
    teacher = PretrainedTeacher(model)
    push(model)
    inputs, labels = batch(model)
    losses, gradients = {}, {}
    for path in ("plain", "fused"):
        objective = Objective(STRONG, "seq2seq" if model.config.is_encoder_decoder else "generation", loss_path=path)
        step = GenerationStep(model, objective, teacher)
        parts, _, _ = step.train(model, inputs, labels, objective.weights(0.5), num_items=None, share=1.0)
        model.zero_grad()
        parts.loss.backward()
        assert step._fused == (path == "fused")
        losses[path] = float(parts.loss.detach())
        gradients[path] = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.requires_grad])
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-3)
    assert (gradients["fused"] - gradients["plain"]).norm() <= 0.05 * gradients["plain"].norm()


class SquaredLogits(nn.Module):
    """A model that changes its logits in an unknown way."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, **inputs):
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits.square()
        return outputs


def test_an_unknown_head_uses_the_plain_path_with_a_warning(caplog):
    model = SquaredLogits(balora.adapt(tiny_llama(), rank=4))
    inputs, labels = batch(model)
    extractor = HiddenStateExtractor(model)
    assert extractor.head() is not None
    assert not extractor.head_matches(model, inputs)
    objective = Objective(STRONG, "generation")
    step = GenerationStep(model, objective, PretrainedTeacher(model))
    with caplog.at_level(logging.WARNING, logger="balora"):
        parts, _, _ = step.train(model, inputs, labels, objective.weights(0.0), num_items=None, share=1.0)
        step.train(model, inputs, labels, objective.weights(0.0), num_items=None, share=1.0)
    assert [r.message for r in caplog.records if "not a plain linear map" in r.message], caplog.text
    assert len(caplog.records) == 1, "one warning"
    mask, targets = valid_targets(labels, shift=True)
    expected = nn.functional.cross_entropy(model(**inputs).logits[mask], targets)
    assert float(parts.task) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_dropout_on_an_adapted_head_uses_the_plain_path():
    model = balora.adapt(
        tiny_llama(tie_word_embeddings=False), rank=4, target_modules=["lm_head", "q_proj"], dropout=0.1
    )
    assert HiddenStateExtractor(model).head() is None
    assert not HiddenStateExtractor(model).head_matches(model, batch(model)[0])


def test_a_head_with_a_disabled_adapter_is_the_layer_under_it():
    model = adapted_head()
    with model.disable_adapter():
        head = HiddenStateExtractor(model).head()
        assert head is not None and head.weight_VD is model.get_output_embeddings().get_base_layer().weight
        assert HiddenStateExtractor(model).head_matches(model, batch(model)[0])


def test_bfloat16_and_autocast_use_the_fused_path():
    model = balora.adapt(tiny_llama().bfloat16(), rank=4)
    inputs, _ = batch(model)
    assert HiddenStateExtractor(model).head_matches(model, inputs)
    model = balora.adapt(tiny_llama(), rank=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # With `bf16=True` accelerate puts only the forward under autocast.
        narrow = HiddenStateExtractor(model).head_matches(model, inputs)
    assert narrow

    def under_autocast(**kwargs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**kwargs)

    assert HiddenStateExtractor(model).head_matches(under_autocast, inputs)


def test_a_wrong_scale_is_detected_in_bfloat16():
    model = tiny_llama().bfloat16()
    model.config.logit_scale = 1.1  # Llama ignores this setting
    assert not HiddenStateExtractor(model).head_matches(model, batch(model)[0])


def test_the_outputs_have_a_graph_for_ddp():
    model = balora.adapt(tiny_llama(), rank=4)
    _, outputs = HiddenStateExtractor(model).hidden_states(model, batch(model)[0])
    assert outputs.logits.grad_fn is not None


def test_the_output_layers_forward_is_restored_after_an_error_and_with_a_hook():
    model = tiny_llama()
    inputs, _ = batch(model)
    extractor = HiddenStateExtractor(model)
    with pytest.raises(ValueError, match="exactly one of"):
        extractor.hidden_states(model, {"nonsense": inputs["input_ids"][0]})
    assert "forward" not in model.lm_head.__dict__
    # accelerate stores its device hooks as an attribute of the module; they must stay.
    calls = []
    original = model.lm_head.forward
    model.lm_head.forward = lambda *args: calls.append(1) or original(*args)
    hidden, _ = extractor.hidden_states(model, inputs)
    expected = model(**inputs).logits
    assert len(calls) == 2
    torch.testing.assert_close(extractor.head().logits(hidden), expected)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(BALoraError, match="BertModel has no output layer"):
        HiddenStateExtractor(tiny_bert().bert)


def test_targets_of_a_causal_model_are_the_next_tokens():
    labels = torch.tensor([[-100, 5, 6, 7], [8, -100, -100, 9]])
    mask, targets = valid_targets(labels, shift=True)
    assert mask.tolist() == [[True, True, True, False], [False, False, True, False]]
    assert targets.tolist() == [5, 6, 7, 9]


def test_targets_of_an_encoder_decoder_are_not_shifted():
    labels = torch.tensor([[-100, 5], [8, -100]])
    mask, targets = valid_targets(labels, shift=False)
    assert mask.tolist() == [[False, True], [True, False]]
    assert targets.tolist() == [5, 8]


@pytest.mark.parametrize("labels", [[[7]], [[-100, -100]], [[7, -100]]])
def test_labels_without_a_target(labels):
    mask, targets = valid_targets(torch.tensor(labels), shift=True)
    assert not mask.any()
    assert targets.numel() == 0


def test_the_first_label_and_the_last_position_are_not_used():
    labels = torch.arange(1, 13).reshape(3, 4)
    mask, targets = valid_targets(labels, shift=True)
    assert mask[:, -1].sum() == 0
    assert targets.tolist() == [2, 3, 4, 6, 7, 8, 10, 11, 12]


@pytest.mark.parametrize("name", ["llama", "gemma2, cap", "bart, offset", "granite, scale"])
def test_the_models_logits_at_some_positions(name):
    model = MODELS[name]()
    inputs, labels = batch(model)
    mask, _ = valid_targets(labels, shift=True)
    expected = model(**inputs).logits[mask]
    found = HiddenStateExtractor(model).logits_at(model, inputs, mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert HiddenStateExtractor(model).logits_at(model, inputs, torch.zeros_like(mask)).shape == (0, 97)


def test_the_initial_checks_compute_few_logits(monkeypatch):
    monkeypatch.setattr("balora.models.hidden_states.SAMPLE_POSITIONS", 5)
    model = balora.adapt(tiny_llama(), rank=4)
    inputs, labels = batch(model)
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: rows.append(output[..., 0].numel()))
    objective = Objective(STRONG, "generation")
    step = GenerationStep(model, objective, PretrainedTeacher(model))
    assert initial_divergence(step, model, inputs, labels) < 1e-9
    step.train(model, inputs, labels, objective.weights(0.5), num_items=None, share=1.0)
    assert step._fused
    assert rows == [5, 5, 5, 0, 0], "the step computes no logits at all"


def test_a_step_does_not_change_the_labels_of_a_model_that_shifts_them_in_place():
    config = transformers.FSMTConfig(
        langs=["a", "b"], src_vocab_size=50, tgt_vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = balora.adapt(transformers.FSMTForConditionalGeneration(config), method="lora", rank=2)
    objective = Objective(balora.RegularizationConfig(consistency=0.5, diversity=0, spectral=0), "seq2seq")
    step = GenerationStep(model, objective, balora.PretrainedTeacher(model))
    labels, inputs = torch.tensor([[5, 6, 2, -100, -100, -100]]), {"input_ids": torch.tensor([[7, 8, 2]])}
    before = labels.clone()
    step.evaluate(model, inputs, labels, keep_logits=False)
    parts, _, _ = step.train(model, inputs, labels, objective.weights(0.0), num_items=None, share=1.0)
    assert torch.equal(labels, before) and parts.loss.isfinite()

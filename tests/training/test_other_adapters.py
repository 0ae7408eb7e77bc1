"""Adapters of peft that balora did not make, and models whose outputs differ from those of Llama."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch

import balora
from balora import BALoraError, PretrainedTeacher
from balora.models.router_loss import router_loss
from bench import step_of
from every_family import tiny_model
from small_runs import ALL_TERMS, OFF, history, trainer
from tiny import pad_rows, pair_rows, tiny_bert, tiny_llama, tiny_t5, token_rows

PROMPTS = {
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}
OTHERS = {
    "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
    "loha": peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
    "lokr": peft.LoKrConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
    "vera": peft.VeraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    "oft": peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=4, target_modules=["q_proj"]),
    "ln": peft.LNTuningConfig(task_type="CAUSAL_LM"),
}


def own_loss(model, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


@pytest.mark.parametrize("path", ["fused", "plain"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt_tuning_trains_on_the_text_without_the_virtual_tokens(kind, path, tmp_path, caplog):
    model, rows = peft.get_peft_model(tiny_llama(), PROMPTS[kind]), token_rows(4)
    expected = own_loss(model, pad_rows(rows))
    run = trainer(model, tmp_path, config=ALL_TERMS, rows=rows, loss_path=path, max_steps=3)
    run.train()
    assert history(run, "task")[0] == pytest.approx(expected, rel=1e-3)
    assert history(run, "consistency")[0] == pytest.approx(0, abs=1e-6) and history(run, "consistency")[-1] > 0
    assert "initial virtual tokens, so the consistency term keeps the student close to that model" in caplog.text


def test_prompt_tuning_of_an_encoder_decoder_and_of_a_classifier(tmp_path):
    seq2seq = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    trainer(peft.get_peft_model(tiny_t5(), seq2seq), tmp_path / "a", rows=pair_rows(8), max_steps=1).train()
    classifier = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    rows = [{**row, "labels": number % 3} for number, row in enumerate(token_rows(8))]
    config = balora.RegularizationConfig.for_classification()
    trainer(peft.get_peft_model(tiny_bert(), classifier), tmp_path / "b", rows=rows, config=config, max_steps=1).train()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_of_peft_train_or_are_refused_in_a_sentence(kind, tmp_path):
    model = peft.get_peft_model(tiny_llama(), OTHERS[kind])
    run = trainer(model, tmp_path, config=ALL_TERMS, max_steps=2)
    run.train()
    assert history(run, "consistency")[0] == pytest.approx(0, abs=1e-6) and history(run, "consistency")[-1] > 0


def test_a_saved_prompt_is_loaded_by_peft(tmp_path):
    model = peft.get_peft_model(tiny_llama(), PROMPTS["prompt"])
    run = trainer(model, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    batch = pad_rows(token_rows(4))
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-1")
    assert own_loss(loaded, batch) == pytest.approx(own_loss(run.model, batch))


@pytest.mark.parametrize("family", ["jetmoe", "dbrx", "mixtral", "granitemoe", "qwen3_moe"])
def test_the_router_loss_that_the_config_asks_for_is_added(family, tmp_path):
    model = tiny_model("causal", family)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.output_router_logits = True
    adapted = balora.adapt(model, "lora", rank=2)
    batch = pad_rows(token_rows(4))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    expected = own_loss(adapted, batch)
    step = step_of(adapted)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    off = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}
    parts, _, _ = step.train(adapted, inputs, batch["labels"], off, num_items=None, share=1.0)
    assert float(parts.loss - parts.task) > 1e-4
    assert float(parts.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("z_loss", [True, False])
def test_the_router_losses_of_an_encoder_decoder_are_added(z_loss):
    """As Switch Transformers adds them when it gets the labels."""
    model = tiny_model("seq2seq", "switch_transformers")
    model.config.output_router_logits = True
    parts = {"encoder_aux_loss": torch.tensor(2.0), "decoder_aux_loss": torch.tensor(3.0)}
    parts |= {"encoder_z_loss": torch.tensor(5.0), "decoder_z_loss": 0} if z_loss else {}
    coefficients = (model.config.router_aux_loss_coef, model.config.router_z_loss_coef)
    expected = 5.0 * coefficients[0] + (5.0 * coefficients[1] if z_loss else 0)
    assert float(router_loss(model, SimpleNamespace(**parts))) == pytest.approx(expected)
    with pytest.raises(BALoraError, match=r"returns no load-balancing loss\. Set output_router_logits to false"):
        router_loss(model, SimpleNamespace(logits=None))


def test_a_router_loss_that_is_not_returned_is_refused():
    model = tiny_llama()
    model.config.output_router_logits = True
    with pytest.raises(
        BALoraError, match=r"LlamaForCausalLM returns no load-balancing loss\. Set output_router_logits to false"
    ):
        step = step_of(balora.adapt(model, "lora", rank=2))
        off = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}
        batch = pad_rows(token_rows(4))
        step.train(step.model, {"input_ids": batch["input_ids"]}, batch["labels"], off, num_items=None, share=1.0)


def test_a_classifier_says_that_it_has_no_router_loss(tmp_path):
    model = tiny_model("classification", "mixtral")
    model.config.output_router_logits = True
    rows = [{**row, "labels": number % 3} for number, row in enumerate(token_rows(8))]
    config = balora.RegularizationConfig.for_classification(teacher_head="initial")
    run = trainer(balora.adapt(model, "lora", rank=2), tmp_path, rows=rows, config=config)
    assert any("output_router_logits has no effect" in notice for notice in run.objective.notices)


def test_a_model_without_an_output_layer_trains_with_every_term(tmp_path):
    rows = pair_rows(8)
    run = trainer(balora.adapt(tiny_model("seq2seq", "fsmt"), rank=2), tmp_path, rows=rows, max_steps=2)
    run.train()
    assert history(run, "consistency")[-1] > 0
    step = step_of(balora.adapt(tiny_model("seq2seq", "fsmt"), rank=2))
    batch = pad_rows(rows[:2])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    assert step.target_logits(step.model, inputs, batch["labels"]).shape == (int(batch["labels"].ne(-100).sum()), 97)


def test_a_loss_without_a_gradient_is_refused_in_a_sentence(tmp_path):
    model = tiny_llama().requires_grad_(False)
    model.unused = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(BALoraError, match=r"The loss has no gradient.*enable_input_require_grads"):
        trainer(model, tmp_path, config=OFF).train()


def test_the_teacher_of_a_prompt_is_the_model_with_its_first_prompt():
    model = peft.get_peft_model(tiny_llama(), PROMPTS["prompt"])
    teacher, tokens = PretrainedTeacher(model), torch.arange(4, 12)[None]
    before = model.eval()(tokens).logits
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    with teacher.active():
        torch.testing.assert_close(model(tokens).logits, before)

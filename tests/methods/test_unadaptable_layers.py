"""Layers whose adapter could get no gradient are found before training, left out, and named with the reason."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

import balora
from balora import BALoraError, BALoraTrainer
from balora.config.run_config import RunConfig
from balora.methods.layer_probe import NO_GRADIENT, NOT_LINEAR, NOT_RUN, READ_DIRECTLY, find_unadaptable_layers
from balora.methods.layers.peft_lora import adapted_names
from balora.training.run import adapter_arguments
from bench import missing_gradients
from every_family import text_inputs, tiny_model
from small_runs import OFF, trainer
from tiny import pad_rows, tiny_bert, tiny_causal, tiny_llama, token_rows


def last_names(names) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


class ReadDirectly(LlamaMLP):
    def forward(self, x):
        return self.down_proj(torch.relu(nn.functional.linear(x, self.up_proj.weight)) * self.gate_proj(x))


class OnlyCompared(LlamaMLP):
    def forward(self, x):
        best = self.gate_proj(x).argmax(-1, keepdim=True)
        return self.down_proj(self.up_proj(x) * (best >= 0))


class CalledByForward(LlamaMLP):
    def forward(self, x):
        return self.down_proj.forward(self.up_proj.forward(x) * self.gate_proj(input=x))


class Routed(LlamaMLP):
    """Two experts as modules; every token goes to the first."""

    def __init__(self, config):
        super().__init__(config)
        self.experts = nn.ModuleList([LlamaMLP(config), LlamaMLP(config)])

    def forward(self, x):
        return self.experts[0](x) + super().forward(x)


class ReadInTraining(LlamaMLP):
    """As the fused kernels of Mamba do."""

    def forward(self, x):
        inner = self.up_proj(x) * self.gate_proj(x)
        return nn.functional.linear(inner, self.down_proj.weight) if self.training else self.down_proj(inner)


class Tied(LlamaMLP):
    """A layer that does not run and has the weight of one that does."""

    def __init__(self, config):
        super().__init__(config)
        self.experts = nn.ModuleList(
            [self.up_proj, nn.Linear(config.hidden_size, config.intermediate_size, bias=False)]
        )
        self.experts[1].weight = self.up_proj.weight


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mlp):
        ctx.save_for_backward(x)
        ctx.mlp = mlp
        return LlamaMLP.forward(mlp, x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            LlamaMLP.forward(ctx.mlp, x).backward(grad)
        return x.grad, None


class HiddenByACustomFunction(LlamaMLP):
    def forward(self, x):
        return Reversible.apply(x, self)


def llama_with(kind: type[LlamaMLP]) -> transformers.LlamaForCausalLM:
    model = tiny_llama(layers=1)
    model.model.layers[0].mlp = kind(model.config)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (LlamaMLP, {}),
        (ReadDirectly, {"up_proj": READ_DIRECTLY}),
        (OnlyCompared, {"gate_proj": NO_GRADIENT}),
        (ReadInTraining, {"down_proj": READ_DIRECTLY}),
        (CalledByForward, {}),
        (Routed, {}),
        (Tied, {}),
        (HiddenByACustomFunction, {}),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dead_layers_are_found_and_experts_without_a_token_are_not_among_them(kind, expected, checkpointing):
    model = llama_with(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    found = find_unadaptable_layers(model)
    assert {name.rpartition(".")[2]: reason for name, reason in found.dead.items()} == expected
    assert not found.unused
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module.training for module in model.modules())
    assert model.is_gradient_checkpointing is checkpointing


def test_frozen_weights_give_the_same_report():
    model = llama_with(ReadDirectly).requires_grad_(False)
    assert last_names(find_unadaptable_layers(model).dead) == {"up_proj"}
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", ["lora", "balora", "dora", "adalora"])
def test_a_dead_layer_is_left_out_and_named(method, caplog):
    options = {"total_steps": 50, "initial_rank": 3} if method == "adalora" else {}
    model = balora.adapt(llama_with(ReadDirectly), method, rank=2, **options)
    assert "mlp.up_proj gets no adapter: the model reads the layer's weight without running the layer" in caplog.text
    assert last_names(adapted_names(model)) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"}
    assert not missing_gradients(model, pad_rows(token_rows(4)))


@pytest.mark.parametrize("targets", [["up_proj", "q_proj"], r".*(up|q)_proj"])
def test_a_dead_layer_that_is_named_is_left_out_too(targets, caplog):
    model = balora.adapt(llama_with(ReadDirectly), "lora", rank=2, target_modules=targets)
    assert last_names(adapted_names(model)) == {"q_proj"} and "up_proj gets no adapter" in caplog.text
    with pytest.raises(
        BALoraError, match=r"No layer that target_modules selects can be adapted.*up_proj.*Name other layers"
    ):
        balora.adapt(llama_with(ReadDirectly), "lora", rank=2, target_modules=["up_proj"])


def test_layers_that_text_does_not_run_are_left_out_unless_they_are_named(caplog):
    make = lambda: tiny_model("causal", "bart")  # noqa: E731 (a decoder without an encoder)
    assert set(find_unadaptable_layers(make()).unused.values()) == {NOT_RUN}
    assert not any("encoder_attn" in name for name in adapted_names(balora.adapt(make(), "lora", rank=2)))
    assert "encoder_attn.k_proj and 3 more get no adapter: the layer does not run" in caplog.text
    named = balora.adapt(make(), "lora", rank=2, target_modules=["encoder_attn.k_proj", "fc1"])
    assert any("encoder_attn" in name for name in adapted_names(named))


def test_a_router_that_returns_a_tuple_gets_no_adapter():
    found = find_unadaptable_layers(tiny_model("causal", "phimoe"))
    assert last_names(found.dead) == {"router"} and set(found.dead.values()) == {NOT_LINEAR}


def test_a_single_output_gets_no_adapter(caplog):
    model = tiny_bert()
    model.bert.encoder.layer[0].gate = nn.Linear(32, 1)
    assert not any(name.endswith("gate") for name in adapted_names(balora.adapt(model, "lora", rank=2)))
    assert "gate gets no adapter" in caplog.text


def test_a_stored_adapter_is_built_again_with_its_own_layers(caplog):
    """An adapter that has a dead layer, as earlier versions trained it, loads; one without it stays without it."""
    first = balora.adapt(llama_with(ReadDirectly), "lora", rank=2)
    stored = {name: p.detach().clone() for name, p in first.named_parameters() if p.requires_grad}
    caplog.clear()
    again = balora.adapt(llama_with(ReadDirectly), "lora", rank=2, initial=stored)
    assert adapted_names(again) == adapted_names(first) and "no adapter" not in caplog.text
    old = get_peft_model(llama_with(ReadDirectly), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    stored = {name: p.detach().clone() for name, p in old.named_parameters() if p.requires_grad}
    loaded = balora.adapt(llama_with(ReadDirectly), "lora", rank=2, initial=stored)
    assert adapted_names(loaded) == adapted_names(old)


def trained(model, tmp_path) -> BALoraTrainer:
    run = trainer(model, tmp_path, config=OFF, rows=token_rows(8), max_steps=2)
    run.train()
    return run


def test_the_trainer_names_dead_tensors_of_another_libraries_adapter(tmp_path, caplog):
    model = get_peft_model(
        llama_with(ReadDirectly), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    run = trained(model, tmp_path)
    (notice,) = [text for text in run.objective.notices if "no gradient" in text]
    assert notice.startswith("2 of 14 trainable tensors, such as base_model.model.model.layers.0.mlp.up_proj.lora_A")
    assert notice in caplog.text


def test_the_trainer_names_experts_that_never_got_a_token_at_the_end(tmp_path):
    run = trained(balora.adapt(llama_with(Routed), "lora", rank=2), tmp_path)
    (notice,) = [text for text in run.objective.notices if "never got a gradient" in text]
    assert "experts.1." in notice


def test_the_trainer_keeps_the_notices_of_adapt_for_the_run(tmp_path, caplog):
    model = balora.adapt(llama_with(ReadDirectly), "lora", rank=2)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run = trained(model, tmp_path)
    assert any("up_proj gets no adapter" in notice for notice in run.objective.notices)
    assert "gradient" not in caplog.text


def test_jamba_and_mamba_train_without_dead_tensors():
    for family, left in [("jamba", {"dt_proj"}), ("mamba", {"dt_proj", "out_proj"}), ("mamba2", {"out_proj"})]:
        model = balora.adapt(tiny_model("causal", family), rank=2)
        assert not last_names(adapted_names(model)) & left
        assert not missing_gradients(model, text_inputs(model.get_base_model()))


@pytest.mark.parametrize("exclude", [["self_attn"], r".*self_attn\..*", ["q_proj", "k_proj", "v_proj", "o_proj"]])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], r".*(q|up)_proj"])
def test_excluded_modules_get_no_adapter(exclude, targets):
    model = balora.adapt(tiny_llama(), rank=2, target_modules=targets, exclude_modules=exclude)
    names = last_names(adapted_names(model))
    assert names == ({"gate_proj", "up_proj", "down_proj"} if targets == "all-linear" else {"up_proj"})


def test_stacks_of_experts_can_be_excluded():
    model = balora.adapt(tiny_causal("Mixtral"), rank=2, exclude_modules=["experts"])
    assert last_names(adapted_names(model)) == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"exclude_modules": ["q_prj"]},
            r"exclude_modules 'q_prj' matches no module of the model\. Did you mean 'q_proj'\?",
        ),
        ({"exclude_modules": "q_proj"}, r"A string is a regular expression.*write \[q_proj\]"),
        ({"exclude_modules": ["model"]}, r"exclude_modules excludes every layer"),
        ({"exclude_modules": ["q_proj"], "target_modules": ["q_proj"]}, r"exclude_modules excludes every layer"),
        ({"exclude_modules": ["q_proj"], "method": "full"}, r"exclude_modules has no effect.*Leave it out"),
        ({"target_modules": ["self_attn"]}, r"target_modules 'self_attn' matches no layer of the model"),
        ({"target_modules": r".*norm"}, r"matches no layer of the model"),
    ],
)
def test_exclusions_that_cannot_be_honoured_are_refused(settings, message):
    with pytest.raises(BALoraError, match=message):
        balora.adapt(tiny_llama(), **{"rank": 2, **settings})


def test_a_layer_whose_name_ends_with_a_selected_full_name_stays_excluded():
    model = tiny_llama(layers=1)
    model.model.draft = nn.Module()
    model.model.draft.model = nn.Module()
    model.model.draft.model.layers = tiny_llama(layers=1, seed=1).model.layers
    names = adapted_names(balora.adapt(model, "lora", rank=2, exclude_modules=["draft"]))
    assert len(names) == 7 and not any("draft" in name for name in names)


@pytest.mark.parametrize("targets", [r".*self_attn.*", ["q_proj", "k_proj", "v_proj", "o_proj", "w_prj", "self_attn"]])
def test_what_has_no_weight_matrix_is_not_selected_and_names_without_a_layer_are_said(targets, caplog):
    model = balora.adapt(tiny_causal("Qwen3", head_dim=8), rank=2, target_modules=targets)
    assert last_names(adapted_names(model)) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    said = "target_modules names w_prj, self_attn, which selects no layer of this model"
    assert (said in caplog.text) == isinstance(targets, list)


@pytest.mark.parametrize(("written", "expected"), [(["q_proj"], ["q_proj"]), (r".*q_proj", r".*q_proj"), (None, None)])
def test_a_config_excludes_modules(written, expected):
    data = {"train": "rows.jsonl", "prompt": "q", "response": "a"}
    method = {"name": "lora", "exclude_modules": written}
    config = RunConfig.from_dict({"model": "m", "task": "generation", "data": data, "method": method, "output": "o"})
    assert adapter_arguments(config)["exclude_modules"] == expected

"""The teacher: the pre-trained model inside the adapted one (method.md, departures 1 and 2)."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft.helpers import DoraCaching
from torch import nn

import balora
from balora import BALoraError, PretrainedTeacher
from balora.models.adapted_model import evaluating
from tiny import tiny_bert, tiny_causal, tiny_gpt2, tiny_llama

METHODS = ["lora", "pissa", "balora", "full"]


def adapted(make, method: str, **options) -> nn.Module:
    return balora.adapt(make(), method=method, **({} if method == "full" else {"rank": 8, **options}))


def divergence(reference: nn.Module, model: nn.Module, batches: list[torch.Tensor]) -> float:
    """Return the mean KL(reference ‖ model) over all positions in nats, computed in float64."""
    total, count = 0.0, 0
    for tokens in batches:
        with torch.no_grad():
            p, q = (m(input_ids=tokens).logits.double().log_softmax(-1) for m in (reference, model))
        total += float((p.exp() * (p - q)).sum())
        count += p[..., 0].numel()
    return total / count


def train(model: nn.Module, batches: list[torch.Tensor], steps: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        tokens = batches[step % len(batches)]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def gsm8k(shared_dir, stories) -> list[torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    with (shared_dir / "data" / "gsm8k" / "train.jsonl").open() as file:
        texts = [json.loads(next(file))["question"] for _ in range(12)]
    return list(torch.tensor([tokenizer(text)["input_ids"][:32] for text in texts]).split(6))


def stored_in(dtype: torch.dtype, folder) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# tests/runs/test_every_method.py has every method.
@pytest.mark.parametrize("method", ["balora"])
def test_the_teacher_is_the_pre_trained_model_after_fifty_steps_on_real_text(method, stories, gsm8k):
    model = adapted(lambda: stored_in(torch.float32, stories), method)
    teacher = PretrainedTeacher(model)
    train(model, [tokens[:1, :20] for tokens in gsm8k], 50, 2e-3)
    fresh = stored_in(torch.float32, stories)
    assert divergence(fresh, model, gsm8k) > 0.05, "the student has changed a lot"
    with teacher.active():
        assert divergence(fresh, model, gsm8k) < 1e-6
    assert divergence(fresh, model, gsm8k) > 0.05, "the student is restored"


@pytest.mark.parametrize("method", ["lora", "balora", "full"])
def test_the_teacher_is_the_pre_trained_model_in_bfloat16(method, stories, gsm8k):
    model = adapted(lambda: stored_in(torch.bfloat16, stories), method)
    teacher = PretrainedTeacher(model)
    train(model, [tokens[:1, :20] for tokens in gsm8k], 50, 2e-3)
    fresh = stored_in(torch.bfloat16, stories)
    exact = stored_in(torch.bfloat16, stories).float()
    assert divergence(fresh, model, gsm8k) > 0.05, "the student has changed a lot"
    # Two orders of summation in bfloat16 differ by this much (4e-4 to 9e-4 on this model).
    noise = divergence(exact, fresh, gsm8k)
    with teacher.active():
        assert divergence(fresh, model, gsm8k) <= 2 * noise
    # The stored weights are the pre-trained ones, which arithmetic in float32 shows without that noise.
    model.float()
    with teacher.active():
        assert divergence(exact, model, gsm8k) < 1e-4


@pytest.mark.parametrize("make", [tiny_gpt2, lambda: tiny_causal("Gemma2")], ids=["gpt2", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_the_pre_trained_model_in_other_families(method, make):
    batches = list(torch.randint(4, 97, (4, 3, 20)))
    model = adapted(make, method)
    teacher = PretrainedTeacher(model)
    train(model, batches, 10, 1e-2)
    assert divergence(make(), model, batches) > 1e-2
    with teacher.active():
        assert divergence(make(), model, batches) < 1e-6


def test_disabling_a_pissa_adapter_gives_another_model():
    batches = list(torch.randint(4, 97, (2, 3, 20)))
    model = adapted(tiny_llama, "pissa")
    with model.disable_adapter():
        residual = divergence(tiny_llama(), model, batches)
    with PretrainedTeacher(model).active():
        assert divergence(tiny_llama(), model, batches) < 1e-9
    assert residual > 1e-2, "the base holds the residual"
    model = adapted(tiny_llama, "lora")
    with model.disable_adapter():
        assert divergence(tiny_llama(), model, batches) < 1e-9, "under LoRA the base is the pre-trained model"


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_made_after_a_step_needs_the_initial_values(method):
    batches = list(torch.randint(4, 97, (2, 3, 20)))
    model = adapted(tiny_llama, method)
    initial = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, batches, 1, 1e-2)
    with pytest.raises(BALoraError, match=r"is not at its initial value.*pass initial="):
        PretrainedTeacher(model)
    with PretrainedTeacher(model, initial).active():
        assert divergence(tiny_llama(), model, batches) < 1e-9
    initial[next(iter(initial))] += 0.1
    with pytest.raises(BALoraError, match=f"{next(iter(initial))} is not at its initial value"):
        PretrainedTeacher(model, initial)
    del initial[next(iter(initial))]
    with pytest.raises(BALoraError, match="The initial values lack"):
        PretrainedTeacher(model, initial)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(BALoraError, match="nothing to train"):
        PretrainedTeacher(tiny_llama().requires_grad_(False))


def test_the_teacher_copies_only_the_trainable_tensors():
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(teacher.initial) == names
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    for name, value in teacher.initial.items():
        torch.testing.assert_close(model.get_parameter(name) - 1.0, value, atol=1e-6, rtol=0)


def test_an_error_inside_the_block_restores_the_student():
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    train(model, list(torch.randint(4, 97, (1, 2, 9))), 2, 1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    with pytest.raises(RuntimeError, match="inside"), teacher.active():
        raise RuntimeError("inside")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    assert model.training and torch.is_grad_enabled()


def test_training_modes_are_restored_per_module_and_dropout_is_off_inside():
    model = balora.adapt(tiny_bert(dropout=0.5), rank=4, dropout=0.5)
    teacher = PretrainedTeacher(model)
    model.train()
    model.get_base_model().bert.encoder.layer[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    tokens = torch.randint(4, 97, (2, 9))
    with teacher.active():
        assert not any(module.training for module in model.modules())
        first, second = model(tokens).logits, model(tokens).logits
    assert torch.equal(first, second)
    torch.testing.assert_close(first, tiny_bert(dropout=0.5)(tokens).logits, atol=1e-5, rtol=0)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_gradients_are_unchanged_and_the_optimizer_updates_the_student():
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tokens = torch.randint(4, 97, (2, 9))
    model(tokens, labels=tokens).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with teacher.active():
        assert not model(tokens).logits.requires_grad
    for name, gradient in gradients.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)
    optimizer.step()
    for name, value in start.items():
        torch.testing.assert_close(model.get_parameter(name), value - 0.1 * gradients[name])
        assert torch.equal(teacher.initial[name], value), "the stored values did not change with them"


def test_the_teacher_follows_the_model_to_another_dtype():
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    train(model, list(torch.randint(4, 97, (1, 2, 9))), 2, 1e-2)
    model.double()
    with teacher.active():
        found = model(torch.arange(4, 12)[None]).logits
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), tiny_llama()(torch.arange(4, 12)[None]).logits, atol=1e-5, rtol=0)


def test_a_tensor_frozen_later_still_gets_its_initial_value():
    batches = list(torch.randint(4, 97, (2, 3, 20)))
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    train(model, batches, 5, 1e-2)
    for name, parameter in model.named_parameters():
        if "layers.0" in name:
            parameter.requires_grad_(False)
    with teacher.active():
        assert divergence(tiny_llama(), model, batches) < 1e-9


def test_a_tensor_made_trainable_later_is_refused():
    model = adapted(tiny_llama, "balora")
    teacher = PretrainedTeacher(model)
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with (
        pytest.raises(BALoraError, match=r"model\.norm\.weight was not trained when the teacher was made"),
        teacher.active(),
    ):
        pass


def test_offloaded_values_give_the_same_teacher():
    model = balora.adapt(tiny_llama(), rank=4)
    on_device, offloaded = PretrainedTeacher(model), PretrainedTeacher(model, offload=True)
    pointers = {name: value.data_ptr() for name, value in offloaded.initial.items()}
    tokens = torch.randint(4, 97, (2, 9))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    student = model(tokens).logits
    logits = []
    for teacher in (on_device, offloaded):
        with teacher.active():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits) and not torch.equal(logits[0], student)
    assert torch.equal(model(tokens).logits, student)
    assert {name: value.data_ptr() for name, value in offloaded.initial.items()} == pointers
    # If the model moves (here: to another dtype), offloaded values stay unchanged, and others follow the model.
    model.double()
    for teacher, dtype in ((offloaded, torch.float32), (on_device, torch.float64)):
        with teacher.active():
            model(tokens)
        assert {value.dtype for value in teacher.initial.values()} == {dtype}


@pytest.mark.parametrize("method", ["full", "dora", "balora"])
def test_teacher_and_student_in_one_autocast_have_their_own_weights(method):
    """Autocast reuses a casted weight, found by its parameter, until the outermost block ends."""
    model = adapted(tiny_llama, method)
    teacher, tokens = PretrainedTeacher(model), torch.arange(4, 12)[None]
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)

    def logits_and_gradients(*before: str) -> tuple[torch.Tensor, set[str]]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for name in before:
                with teacher.active() if name == "teacher" else evaluating(model):
                    model(tokens)
            outputs = model(tokens, labels=tokens)
            with teacher.active():
                taught = model(tokens).logits
        outputs.loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16), teacher.active():
            assert torch.equal(model(tokens).logits, taught), "the teacher does not use weights of the student either"
        return outputs.logits.detach(), {name for name, p in model.named_parameters() if p.grad is not None}

    alone, gradients = logits_and_gradients()
    for before in (["teacher"], ["evaluation"], ["evaluation", "teacher"]):
        found, names = logits_and_gradients(*before)
        assert torch.equal(found, alone) and names == gradients, before


def test_the_student_does_not_use_the_norms_that_peft_cached_for_a_dora_teacher():
    model = adapted(tiny_llama, "dora")
    teacher, tokens = PretrainedTeacher(model), torch.arange(4, 12)[None]
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1)
        expected = model.eval()(tokens).logits
        with DoraCaching():
            with teacher.active():
                model(tokens)
            assert torch.equal(model(tokens).logits, expected)

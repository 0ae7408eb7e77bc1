"""Estimates equal the numbers of real models."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import LlamaForSequenceClassification, Trainer, TrainingArguments

import balora
from balora.config.training_arguments import optimizer_steps
from balora.estimation.memory import estimate
from balora.estimation.meta_device import on_meta
from balora.methods import METHODS
from balora.methods.adaptation import check_options
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.hidden_states import HiddenStateExtractor
from balora.training.steps.train_step import infer_task
from families import FAMILIES
from tiny import tiny_bert, tiny_llama, tiny_t5


def llama_classifier() -> LlamaForSequenceClassification:
    config = tiny_llama().config
    config.num_labels, config.pad_token_id = 3, 0
    return LlamaForSequenceClassification(config)


def adapted_on_meta(build, method: str = "balora"):
    config = build().config
    with torch.device("meta"):
        model = type(build())(config)
    spec = METHODS[method]
    return spec.build(model, check_options(spec, 4, None, 0.0, "all-linear", 0, {})).train()


@pytest.mark.parametrize("method", ["full", "lora", "balora"])
def test_trainable_parameters_are_those_of_the_adapted_model(method: str) -> None:
    real = balora.adapt(tiny_llama(), method, rank=4)
    found = estimate(
        adapted_on_meta(tiny_llama, method), "generation", dtype=torch.float32, batch_size=2, length=16, steps=1
    )
    assert found.trainable == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in real.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_estimated_exactly(bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    real = balora.adapt(tiny_bert(), "lora", rank=4, bits=bits, double_quantization=False)
    taken = sum(p.nbytes for p in real.parameters())
    layers = [m for m in real.modules() if isinstance(m, QuantizedLinear)]
    taken += sum(m.weight.quant_state.absmax.nbytes if bits == 4 else m.scale_O.nbytes for m in layers)
    how = {"dtype": torch.float32, "batch_size": 2, "length": 16, "steps": 1}
    found = estimate(adapted_on_meta(tiny_bert, "lora"), "classification", bits=bits, double_quantization=False, **how)
    assert found.weights_gib * 2**30 == taken
    assert found.weights_gib < 0.75 * estimate(adapted_on_meta(tiny_bert, "lora"), "classification", **how).weights_gib


@pytest.mark.parametrize("name", [*FAMILIES, "a decoder's classifier"])
def test_activations_are_the_tensors_that_autograd_keeps(name: str) -> None:
    """Count the saved tensors of a real model and compare. Attention scores would add half as much again."""
    build = FAMILIES.get(name, llama_classifier)
    model = balora.adapt(build(), rank=4).train()
    task = infer_task(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.randint(4, 97, (2, 48))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = tokens
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if task == "classification":
            model(**inputs)
        else:
            HiddenStateExtractor(model).hidden_states(model, {**inputs, "use_cache": False})
    real = sum(size for size, _ in storages.values())
    found = estimate(adapted_on_meta(build), task, dtype=torch.float32, batch_size=2, length=48, steps=1)
    # On the CPU, DeepSeek's attention keeps its scores, as its values are narrower than its keys; Mistral's window is a mask.
    least = 0.8 if name.startswith(("DeepSeek-V", "Mistral")) else 1.0
    chunk = 0 if task == "classification" else 3 * 4 * 2 * 48 * 97
    assert found.activations_gib is not None
    assert least * real <= found.activations_gib * 2**30 - chunk <= real


def test_activations_of_an_encoder_decoder_grow_with_both_lengths() -> None:
    how = {"dtype": torch.float32, "batch_size": 2, "steps": 1}
    found = {
        (source, target): estimate(
            adapted_on_meta(tiny_t5), "seq2seq", length=source, target_length=target, **how
        ).activations_gib
        for source, target in ((8, 8), (8, 64), (64, 8), (64, 64))
    }
    assert found[8, 8] < min(found[8, 64], found[64, 8]) and max(found[8, 64], found[64, 8]) < found[64, 64]
    assert found[64, 64] == estimate(adapted_on_meta(tiny_t5), "seq2seq", length=64, **how).activations_gib


@pytest.mark.parametrize(
    ("rows", "training"),
    [
        (10, {"per_device_train_batch_size": 3, "num_train_epochs": 2}),
        (10, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "num_train_epochs": 1}),
        (10, {"per_device_train_batch_size": 4, "dataloader_drop_last": True, "num_train_epochs": 1.5}),
        (10, {"max_steps": 7}),
    ],
)
def test_steps_equal_the_trainers(rows: int, training: dict, tmp_path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **training)
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=TensorDataset(torch.zeros(rows, 1)))
    *_, max_steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert optimizer_steps(rows, training) == max_steps


def test_running_on_the_meta_device_patches_neither_torch_nor_the_model() -> None:
    names = (torch.autocast, torch.nn.functional.scaled_dot_product_attention)
    model = adapted_on_meta(FAMILIES["Mixtral"])
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with on_meta(model):
        assert names == (torch.autocast, torch.nn.functional.scaled_dot_product_attention)
        model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes

"""The anchors' term of every family that the paper uses: fused against plain, value and gradients, after some training."""

from __future__ import annotations

import pytest
import torch
from test_anchored_training import moved

import balora
from balora import PretrainedTeacher
from balora.objective import Objective
from balora.training.steps.classification_step import ClassificationStep
from balora.training.steps.generation_step import GenerationStep
from balora.training.steps.train_step import infer_task
from families import FAMILIES
from small_runs import OFF


def made(name: str) -> tuple[torch.nn.Module, PretrainedTeacher]:
    base = FAMILIES[name]()
    # In float32: the kernel of routed experts has no float64 form.
    model = balora.adapt(base, "lora", rank=4).eval()
    teacher = PretrainedTeacher(model)
    return moved(model), teacher


@pytest.mark.parametrize("name", FAMILIES)
def test_value_and_gradients_are_those_of_full_logits(name):
    model, teacher = made(name)
    task = infer_task(model)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 97, (3, 8), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task in ("classification", "regression"):
        step = ClassificationStep(model, Objective(OFF, task, num_labels=model.config.num_labels), teacher)
        outputs, labels, items = step.teacher_on_anchors(model, inputs, None), None, 3.0
        term = step.hold(model, inputs, labels, outputs, temperature=1.0, num_items=items)
        with teacher.active():
            before = model(**inputs).logits.double().log_softmax(-1)
        after = model(**inputs).logits.double().log_softmax(-1)
        expected = (before.exp() * (before - after)).sum() / 3
        torch.testing.assert_close(term.double(), expected, rtol=1e-4, atol=1e-6)
        return
    labels = ids.clone()
    labels[:, :2] = -100
    results = []
    for path in ("fused", "plain"):
        step = GenerationStep(model, Objective(OFF, task, loss_path=path), teacher)
        outputs = step.teacher_on_anchors(model, inputs, labels)
        model.zero_grad()
        term = step.hold(model, inputs, labels, outputs, temperature=1.0, num_items=18.0)
        term.backward()
        results.append([term.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        results[-1] = [tensor.clone() for tensor in results[-1]]
    assert float(results[0][0]) > 1e-6
    assert len(results[0]) == len(results[1]) > 1
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)

"""Training steps that are compared: stock PiSSA, a plain reading of BA-LoRA, and balora.

- ``stock``: peft and transformers without regularizers.
- ``reference``: a second model with full logits (`reference.py`).
- ``online``: balora with the teacher's forward at every step.
- ``offloaded``: ``online`` with the teacher's values in host memory.
- ``cached``: balora with a teacher cache on disk.
- ``off``: balora without regularizers.
- ``anchored``: ``off`` with anchors, a quarter of the task's tokens, under a cached teacher.
- ``forward``: one forward of the stock model without gradients, the least that a teacher can cost.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

import balora
from balora import Anchors
from balora.anchoring.rows import AnchorRows
from balora.estimation.meta_device import on_meta
from balora.methods.fingerprint import fingerprint
from balora.methods.layers.lora_linear import LoraLinear
from balora.objective import Objective
from balora.teacher.cache import TeacherCache, TeacherIdentity
from balora.teacher.cache_builder import TeacherCacheBuilder
from balora.teacher.row_keys import row_key
from balora.training.anchors.anchor_term import AnchorTerm
from balora.training.steps.generation_step import GenerationStep
from balora.training.steps.subsampling import SequenceMask
from reference import CONSISTENCY, DIVERSITY, SPECTRAL, reference_loss
from shapes import Shape

NAMES = ("stock", "reference", "online", "offloaded", "cached", "off", "anchored", "forward")
WITHOUT_BALORA = ("stock", "reference", "forward")
WEIGHTS = {"consistency": CONSISTENCY, "diversity": DIVERSITY, "spectral": SPECTRAL, "variance": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KEPT_TOKENS = 64
SHARE = 0.25
"""Anchor tokens per token of the task."""
Batch = dict[str, Tensor]


class Variant:
    """A model, its loss and its optimizer."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        model: nn.Module,
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.loss = loss
        self.optimizer = optimizer or optimizer_of(model)
        self.teacher: nn.Module | None = None  # the reference's second model
        if shape.checkpointing:
            settings: dict[str, object] = {"use_reentrant": False}
            if next(model.parameters()).is_meta:  # modes of the forward do not reach what the backward computes again
                settings["context_fn"] = lambda: (contextlib.nullcontext(), on_meta())
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)

    def step(self, batch: Batch) -> None:
        """Run forward, backward and optimizer."""
        with peft_layers() if self.name in WITHOUT_BALORA else contextlib.nullcontext():
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        if self.name == "forward":
            self.model.eval()
            with torch.no_grad():
                self.loss(batch)
            return
        self.model.train()
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@contextlib.contextmanager
def peft_layers() -> Iterator[None]:
    """Make balora's LoRA layers run as peft's own, so that the variants without balora do not profit from them."""
    original = LoraLinear.forward
    LoraLinear.forward = peft.tuners.lora.layer.Linear.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        LoraLinear.forward = original  # type: ignore[method-assign]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW in the Trainer's fused form; torch's default needs scratch memory of the adapter's size."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0, fused=True)


def load(name: str, shape: Shape, device: str = "cpu", svd: str = "pissa_niter_4") -> nn.Module:
    """Return the adapted model of a variant in its initial state.

    Args:
        name: One of `NAMES`.
        shape: Sizes of the model.
        device: Device of the model.
        svd: Initialisation of the stock variant; it has no effect on the cost of a step.
    """
    model = shape.model(device)
    if name in ("stock", "forward"):
        config = peft.LoraConfig(
            r=shape.rank, lora_alpha=shape.rank, target_modules=TARGETS, init_lora_weights=svd, task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config)
    return balora.adapt(model, "balora", rank=shape.rank, target_modules=TARGETS, svd="randomized", svd_iterations=1)


def prepare(
    name: str,
    shape: Shape,
    model: nn.Module,
    batches: list[Batch],
    *,
    own_teacher: balora.PretrainedTeacher | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Variant, contextlib.ExitStack]:
    """Return a variant with its teacher or cache, and the context to close in the end.

    Args:
        name: One of `NAMES`.
        shape: Sizes of the reference's second model.
        model: Result of `load`.
        batches: Batches of the measurement, for the cache.
        own_teacher: Teacher of a model that is no longer in its initial state; default made here.
        optimizer: Optimizer that several variants share; default made here.
    """
    resources = contextlib.ExitStack()
    if name in ("stock", "forward"):
        return Variant(name, shape, model, lambda batch: model(**batch).loss, optimizer), resources
    if name == "reference":
        teacher = shape.model(str(batches[0]["input_ids"].device))
        variant = Variant(name, shape, model, lambda batch: reference_loss(model, teacher, batch), optimizer)
        variant.teacher = teacher
        return variant, resources
    own_teacher = own_teacher or balora.PretrainedTeacher(model, offload=name == "offloaded")
    cache = None
    if name == "cached":
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory())) / "cache"
        with own_teacher.active():
            cache = _cache(directory, model, batches)
    step = GenerationStep(model, Objective(balora.RegularizationConfig(), "generation"), own_teacher, cache)
    weights = dict.fromkeys(WEIGHTS, 0.0) if name in ("off", "anchored") else WEIGHTS
    term = _anchors(step, batches[0]) if name == "anchored" else None
    steps = iter(range(10**9))
    keys = {id(batch): [row_key(row) for row in rows_of_batch(batch)] for batch in batches} if cache else {}

    def loss(batch: Batch) -> Tensor:
        if term is not None:
            held, weight = term.loss(model, next(steps), 1)
            assert held is not None
            (weight * held).backward()
        inputs = dict(batch)
        labels = inputs.pop("labels")
        held = SequenceMask(row_keys=keys.get(id(batch)))
        parts, _, _ = step.train(model, inputs, labels, weights, num_items=None, share=1.0, sequence_mask=held)
        return parts.loss

    return Variant(name, shape, model, loss, optimizer), resources


def _anchors(step: GenerationStep, batch: Batch) -> AnchorTerm:
    """Return anchors of a quarter of the batch's tokens, all of one length, with their teacher cached."""
    size, length = batch["input_ids"].shape
    width = max(length // 4, 8)
    vocabulary = step.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    tokens = torch.randint(4, vocabulary, (4 * size, width), generator=torch.Generator().manual_seed(3)).tolist()
    anchors = Anchors(rows=[{"input_ids": row} for row in tokens], share=SHARE)
    term = AnchorTerm(
        anchors, AnchorRows(anchors.rows or [], 0.125, 0), step, tokens_per_step=size * length, pad_token=0, seed=0
    )
    term.cache_teacher()
    return term


def rows_of_batch(batch: Batch) -> list[dict[str, Tensor]]:
    """Return the rows of a batch, as a dataset has them."""
    return [{name: value[row].cpu() for name, value in batch.items()} for row in range(len(batch["labels"]))]


def _cache(directory: Path, model: nn.Module, batches: list[Batch]) -> TeacherCache:
    """Build a teacher cache with the adapted model, whose teacher must be active."""
    identity = TeacherIdentity(
        fingerprint(model.named_parameters()), "", str(model.dtype).removeprefix("torch."), temperature=2.0
    )
    writer = TeacherCacheBuilder(
        directory, model, identity, lambda rows: {n: torch.stack([row[n] for row in rows]) for n in rows[0]},
        shift=True, top_k=KEPT_TOKENS, batch_size=len(batches[0]["labels"]),
    )  # fmt: skip
    writer.add([row for batch in batches for row in rows_of_batch(batch)])
    return TeacherCache(directory)


def same_as_reference(shape: Shape) -> dict[str, float]:
    """Return the relative differences of balora and the plain reading in loss and gradient, near the initial state."""
    model = load("online", shape)
    batches = shape.batches(1)
    reference, _ = prepare("reference", shape, model, batches)
    balora_variant, _ = prepare("online", shape, model, batches)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(parameter.std() * torch.randn(parameter.shape, generator=generator))
    found = []
    for variant in (reference, balora_variant):
        with peft_layers() if variant is reference else contextlib.nullcontext():
            loss = variant.loss(batches[0])
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((float(loss.detach()), copy.deepcopy(gradient)))
        model.zero_grad()
    (plain, gradient), (fast, other) = found
    return {"loss": abs(fast - plain) / abs(plain), "gradient": float((other - gradient).norm() / gradient.norm())}

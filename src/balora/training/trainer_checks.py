"""Checks before the first step: arguments, sharding, the adapter and its teacher."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from balora.config.training_arguments import no_full_batch
from balora.errors import BALoraError, raise_all
from balora.methods.quantization.quantize import loaded_bits
from balora.methods.registry import Method
from balora.models.adapted_model import evaluating
from balora.objective import Objective
from balora.regularizers import consistency
from balora.training.steps.train_step import TrainStep

logger = logging.getLogger("balora")
NO_TARGET = (
    "No training row has a target: every label is -100, which means that it is ignored, so nothing would be learnt. Check how "
    "the labels are masked, and whether the responses are cut off."
)
NO_GRADIENT = (
    "The loss has no gradient, so nothing would be learnt: no trainable tensor takes part in the model's logits. If the model "
    "computes the gradients of its layers by itself (Reformer, reentrant checkpointing), call "
    "model.enable_input_require_grads() before training."
)
_DDP = "train with one unsharded model per process (plain `accelerate launch` or `torchrun`)"


_LOSS_TYPES = ("nll", "chunked_nll")
"""Values of trl's ``loss_type`` that mean the mean cross-entropy."""
# By argument: the values that cannot be honoured, and what to do instead.
_REFUSED_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label_smoothing_factor": (bool, "is not supported by the regularized objective. Set it to 0."),
    "loss_type": (
        lambda value: value not in _LOSS_TYPES,
        "is not supported: the regularized objective would replace that loss by the cross-entropy. Set loss_type to 'nll', or "
        "train with trl's own trainer.",
    ),
    "auto_find_batch_size": (
        bool,
        "is not supported: after a lack of memory, training would start again at step 0 with weights that have already changed. "
        "Set per_device_train_batch_size, and gradient_accumulation_steps to keep the batch; `balora validate` estimates the "
        "memory.",
    ),
    "label_names": (
        lambda value: value is not None and "labels" not in value,
        "is not supported: the objective takes the targets from the column 'labels'. Rename the column, and leave label_names out.",
    ),
    "liger_kernel_config": (
        lambda value: bool(value and value.get("fused_linear_cross_entropy")),
        "asks for fused_linear_cross_entropy, which replaces the forward pass that the regularizers need. Leave it out; the loss "
        "here computes no logits either.",
    ),
}


def check_arguments(trainer: Any) -> None:
    """Refuse Trainer arguments that the regularized objective would not honour, or that do not work with it."""
    args = trainer.args
    if args.n_gpu > 1:
        raise BALoraError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported. Start with `accelerate launch` or "
            "`torchrun`, one process per GPU, or make one GPU visible through CUDA_VISIBLE_DEVICES."
        )
    problems = [
        f"The training argument {name}={value!r} {reason}"
        for name, (refused, reason) in _REFUSED_ARGUMENTS.items()
        if refused(value := getattr(args, name, None)) and (value is not None or name != "loss_type")
    ]
    if not args.average_tokens_across_devices and args.world_size > 1:
        problems.append(
            "The training argument average_tokens_across_devices=False is not supported with several processes: the objective "
            "divides by the targets of all devices. Leave it out."
        )
    if args.torch_compile and args.device.type == "cuda":
        problems.append(
            "training.torch_compile is not supported on a GPU: measured there, the gradient of a compiled model was wrong and its "
            "step slower (docs/results/gpu.md). Leave it out."
        )
    if getattr(trainer, "compute_loss_func", None) is not None:
        problems.append("compute_loss_func is not supported: it would replace the regularized objective. Leave it out.")
    raise_all(problems, "The trainer cannot be made")
    if args.use_liger_kernel:  # liger's other kernels are used
        args.liger_kernel_config = {**(args.liger_kernel_config or {}), "fused_linear_cross_entropy": False}


def check_sharding(state: Any, model: nn.Module, method: Method | None) -> None:
    """Refuse ways of sharding that would give a wrong teacher or result, or that are untested.

    ``state`` is accelerate's state with its plugins, ``model`` is not sharded yet, and ``method`` is None if balora did not
    make the adapter.
    """
    deepspeed, fsdp = (getattr(state, f"{kind}_plugin", None) for kind in ("deepspeed", "fsdp"))
    problems = []
    parallel = getattr(state, "parallelism_config", None)
    kinds = {"cp": "context", "sp": "sequence", "tp": "tensor"}
    if used := [kind for name, kind in kinds.items() if getattr(parallel, f"{name}_enabled", False)]:
        problems.append(
            f"{' and '.join(used).capitalize()} parallelism divides sequences or matrices among processes, and the regularizers "
            f"need them whole. Leave parallelism_config out, and use FSDP version 2, or {_DDP}."
        )
    if deepspeed is not None and deepspeed.zero_stage == 3:
        problems.append(
            "DeepSpeed's ZeRO stage 3 holds a module's parameters only while that module runs, and the teacher and the loss need "
            "them at other times. Use FSDP version 2, or ZeRO stage 1 or 2."
        )
    if fsdp is not None and fsdp.fsdp_version != 2:
        problems.append(
            "FSDP version 1 flattens the parameters, so the teacher could not be given the initial values. Set fsdp_version: 2 "
            f"in accelerate's config (fsdp_config: {{version: 2}} in training), or {_DDP}."
        )
    if fsdp is not None and fsdp.cpu_ram_efficient_loading:
        problems.append(
            "With FSDP's cpu_ram_efficient_loading only one process has the weights that the adapter is computed from. "
            "Set fsdp_cpu_ram_efficient_loading to false."
        )
    if fsdp is not None and method is not None and (method.optimizer or method.after_step or method.penalty):
        problems.append(
            f"Method {method.name!r} needs unsharded matrices in its optimizer or after each step, and FSDP shards them. "
            f"Use another method, or {_DDP}."
        )
    if fsdp is not None and loaded_bits(model) is not None:
        problems.append(
            f"Sharding of weights in {loaded_bits(model)} bits is not supported. Leave method.bits out, or {_DDP}."
        )
    raise_all(problems, "The model cannot be sharded in this way")


def refuse_training_without_step(loader: Any, rows: Any, size: int) -> None:
    """Refuse training rows that fill no batch; rows without a length are checked after the first epoch."""
    with contextlib.suppress(TypeError):
        if len(loader) == 0:
            raise BALoraError(no_full_batch(len(rows), size) if len(rows) else "There are no training rows.")


def refuse_masked_rows(rows: Any, count_targets: Callable[[Tensor], Tensor]) -> None:
    """Refuse rows of which none has a target; rows whose labels the collator makes are checked after the first epoch.

    Usually the first row has a target, and no other row is read.
    """
    if not isinstance(rows, Sequence | Dataset):
        return
    for number in range(len(rows)):
        row = rows[number]
        labels = row.get("labels") if isinstance(row, Mapping) else None
        if not isinstance(labels, int | float | list | Tensor | np.ndarray):
            return
        if count_targets(torch.as_tensor(labels)[None]):
            return
    raise BALoraError(NO_TARGET)


def describe_small_vocabulary(model: nn.Module, objective: Objective) -> str | None:
    """Say that the diversity term takes all tokens, because the vocabulary is not larger than its top_k; None if it is."""
    head = model.get_output_embeddings() if objective.generates else None  # type: ignore[operator]
    size = None if head is None or not hasattr(head, "weight") else int(head.weight.shape[0])
    top_k = objective.config.top_k
    if size is None or not objective.config.diversity or size >= top_k:
        return None
    return (
        f"The diversity term is to take the {top_k} likeliest tokens (regularization.top_k), and the model has {size}: it takes "
        "all of them."
    )


def refuse_inactive_adapters(model: nn.Module) -> None:
    """Refuse merged or disabled adapters: they receive no gradient, and teacher and student would stay equal."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (module.merged or module.disable_adapters):
            state, fix = ("merged", "unmerge_adapter()") if module.merged else ("disabled", "enable_adapters()")
            raise BALoraError(f"The adapter of {name} is {state}, so it would not learn. Call {fix} first.")


def warn_about_trained_adapter(model: nn.Module) -> None:
    """Warn if `balora.adapt` did not make the adapter and the teacher may not be the pre-trained model."""
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        logger.warning(
            "The adapter is %s, whose virtual tokens change the model from the start. The teacher is the model with the initial "
            "virtual tokens, so the consistency term keeps the student close to that model, not to the pre-trained one.",
            config.peft_type.value,
        )
        return
    if any(".lora_B." in name and parameter.any() for name, parameter in model.named_parameters()):
        logger.warning(
            "The adapter was not made by balora.adapt and its B is not 0, so the teacher is the model as it is now. If the "
            "adapter was trained before, the consistency term keeps the student close to that model, not to the pre-trained "
            "one. To have the pre-trained model as the teacher, merge the adapter and adapt anew."
        )


def initial_divergence(step: TrainStep, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> float:
    """Return KL(teacher ‖ student) in nats (for regression the mean squared difference), both in eval mode."""
    with step.teacher.active():
        teacher_logits = step.target_logits(model, inputs, labels).float()
    with evaluating(step.model):
        student_logits = step.target_logits(model, inputs, labels).float()
        if step.objective.task == "regression":
            return float((student_logits - teacher_logits).square().mean())
        return float(consistency(student_logits, teacher_logits, 1.0))


def check_initial_teacher(step: TrainStep, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> None:
    """Refuse a run if its teacher and student differ before the first step by more than rounding explains."""
    divergence = initial_divergence(step, model, inputs, labels)
    half_precision = any(p.dtype in (torch.bfloat16, torch.float16) for p in step.model.parameters())
    tolerance = 1e-4 if half_precision else 1e-6
    if not divergence <= tolerance:
        measure = (
            f"the mean squared difference of their outputs is {divergence:.3g}"
            if step.objective.task == "regression"
            else f"the KL divergence between them is {divergence:.3g} nats"
        )
        raise BALoraError(
            f"The teacher is not the model that training starts from: {measure}, and rounding explains at most "
            f"{tolerance:.0e}. Likely causes: the adapter was trained, merged or disabled after balora.adapt, or the forward is "
            "random in eval mode. Adapt a freshly loaded model."
        )

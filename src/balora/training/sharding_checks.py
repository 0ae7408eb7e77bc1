"""What of a model's sharding over devices cannot be trained here, said before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from balora.errors import raise_all
from balora.methods.quantization.quantize import loaded_bits
from balora.methods.registry import Method

_DDP = "train with one whole model per process (plain `accelerate launch` or `torchrun`)"


def check_sharding(state: Any, model: nn.Module, method: Method | None) -> None:
    """Refuse the ways of sharding under which teacher or result would be wrong, or that nobody has tried.

    Args:
        state: accelerate's, with its plugins.
        model: Not sharded yet.
        method: Of the adapter, None where balora did not make it.

    Raises:
        BALoraError: One or more settings cannot be honoured; all are named.
    """
    problems = []
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        problems.append(
            "DeepSpeed's ZeRO stage 3 takes the parameters apart, and the pre-trained model could not be put back for the "
            "teacher. Use FSDP version 2, or ZeRO stage 1 or 2."
        )
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None:
        problems += _fsdp_problems(fsdp, model, method)
    raise_all(problems, "The model cannot be sharded so")


def _fsdp_problems(plugin: Any, model: nn.Module, method: Method | None) -> list[str]:
    problems = []
    if plugin.fsdp_version != 2:
        problems.append(
            "FSDP version 1 flattens the parameters, and the teacher could not be put back. Set fsdp_version: 2 in "
            f"accelerate's config (fsdp_config: {{version: 2}} in training), or {_DDP}."
        )
    if plugin.cpu_ram_efficient_loading:
        problems.append(
            "With FSDP's cpu_ram_efficient_loading only one process has the weights when the adapter is started from them. "
            "Set fsdp_cpu_ram_efficient_loading to false."
        )
    if method is not None and (method.optimizer or method.after_step or method.penalty):
        problems.append(
            f"Method {method.name!r} works on whole matrices in its optimizer or after each step, and FSDP holds shards. "
            f"Use another method, or {_DDP}."
        )
    if loaded_bits(model) is not None:
        problems.append(f"Weights in {loaded_bits(model)} bits are not sharded here. Leave method.bits out, or {_DDP}.")
    return problems

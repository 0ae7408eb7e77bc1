"""Find linear layers whose adapter could get no gradient, from one forward of a few tokens.

An adapter adds its product to the output of its layer. It cannot learn if the model multiplies by the layer's weight without
running the layer (``dt_proj`` of Jamba and Mamba), or if the layer's output is only compared and sorted (the indexers of sparse
attention). Some layers do not run at all: the cross-attention of a decoder without an encoder, or a vision tower. A routed
expert without a token does not run either, but another token may be sent to it, so it is not reported.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from balora.methods.initial_state import output_logits, probe_inputs
from balora.methods.target_modules import linear_layers
from balora.models.adapted_model import evaluating

READ_DIRECTLY = "the model reads the layer's weight without running the layer, so the adapter would get no gradient"
NO_GRADIENT = "the layer's output sends no gradient back from the logits, so the adapter would not learn"
NOT_LINEAR = "the layer returns something else than its input times its weight"
MORE_TOKENS = 256
NOT_RUN = "the layer does not run when the model reads text alone"


@dataclasses.dataclass(frozen=True)
class UnadaptableLayers:
    """Layers that should get no adapter, by name, with the reason as a phrase."""

    dead: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Layers whose adapter would never get a gradient."""
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Layers that did not run. Other inputs, such as images, may run them."""


def find_unadaptable_layers(model: nn.Module) -> UnadaptableLayers:
    """Run a few tokens as in training, and report the layers whose adapter could get no gradient.

    Eight tokens are run first. If a layer seems to have no effect on the logits, more tokens are run, because some layers work
    on blocks of tokens (the compressors of DeepSeek-V4). The model is as before afterwards. The report is empty on the meta
    device and for a model without text input.
    """
    inputs = probe_inputs(model)
    if inputs is None:
        return UnadaptableLayers()
    found = _report(model, inputs)
    if NO_GRADIENT not in found.dead.values():
        return found
    with contextlib.suppress(
        RuntimeError, IndexError, ValueError
    ):  # more tokens than the model or the memory has room for
        longer = _report(model, probe_inputs(model, MORE_TOKENS) or inputs)
        dead = {name: reason for name, reason in found.dead.items() if reason != NO_GRADIENT or name in longer.dead}
        return UnadaptableLayers(dead, found.unused)
    return found


def _report(model: nn.Module, inputs: dict[str, Tensor]) -> UnadaptableLayers:
    layers = {name: layer for name, layer in linear_layers(model) if ".lora_" not in name}
    with _as_in_training(model), _weights_require_grad(layers) as weights:
        with _watched(layers) as in_training:
            outputs = model(**inputs)
        reached, hides_graph = _graph_of(outputs)
        del outputs
    with _watched(layers) as in_evaluation, evaluating(model):
        model(**inputs)
    ran = in_training.tags.keys() | in_evaluation.tags.keys() | in_training.misfits | in_evaluation.misfits
    owners = _owners(model)
    dead, unused = {}, {}
    for name, layer in layers.items():
        tags = in_training.tags.get(name)
        if name in in_training.misfits:
            dead[name] = NOT_LINEAR
        elif tags is not None:
            if reached.isdisjoint(map(id, tags)) and not (hides_graph and name in in_training.without_grad):
                dead[name] = NO_GRADIENT
        elif name in weights and id(layer.weight) in reached and owners[id(layer.weight)] == 1:
            dead[name] = READ_DIRECTLY
        elif name not in ran and not _is_routed(model, name, ran):
            unused[name] = NOT_RUN
    return UnadaptableLayers(dead, unused)


@dataclasses.dataclass
class _Record:
    """What the layers did in a forward."""

    tags: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    """A zero that was added to each output of a layer; the graph shows whether the logits depend on it."""
    misfits: set[str] = dataclasses.field(default_factory=set)
    """Layers with an output that is not a linear map of the input."""
    without_grad: set[str] = dataclasses.field(default_factory=set)
    """Layers that ran while gradients were off, as in the forward of a custom autograd function."""


@contextlib.contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[_Record]:
    """Record the outputs of the layers inside the block. Their ``forward`` is replaced, because some models call it directly."""
    record = _Record()
    previous = {name: layer.__dict__.get("forward") for name, layer in layers.items()}

    def watch(name: str, layer: Any) -> None:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            inputs = [*args, *kwargs.values()]
            if not isinstance(output, Tensor) or not _is_linear_map(layer, inputs, output):
                record.misfits.add(name)
                return output
            if not torch.is_grad_enabled():
                record.without_grad.add(name)
            tag = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            record.tags.setdefault(name, []).append(tag)
            return output + tag

        layer.forward = forward

    for name, layer in layers.items():
        watch(name, layer)
    try:
        yield record
    finally:
        for name, layer in layers.items():
            if previous[name] is None:
                del layer.forward
            else:
                layer.forward = previous[name]  # type: ignore[method-assign, assignment]


@torch.no_grad()
def _is_linear_map(layer: Any, inputs: list[Any], output: Tensor) -> bool:
    """Return whether a layer with a forward of its own computed W x + b, as the adapter's layer assumes."""
    known = type(layer).forward in (nn.Linear.forward, Conv1D.forward)
    if known or not layer.weight.is_floating_point() or layer.weight.dim() != 2:
        return True
    x = inputs[0]
    if not isinstance(x, Tensor) or x.shape[-1] != layer.weight.shape[1]:
        return False
    expected = nn.functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)
    if expected.shape != output.shape:
        return False
    tolerance = 1e-3 if output.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((expected - output).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-3))


@contextlib.contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Switch to training mode inside the block, without checkpointing and with the caller's random state restored.

    Some models read a layer's weight directly only in training (the fused kernels of Mamba).
    """
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # running statistics stay
    for module in checkpointing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        torch.clear_autocast_cache()


@contextlib.contextmanager
def _weights_require_grad(layers: Mapping[str, Any]) -> Iterator[set[str]]:
    """Make the layers' weights part of the graph inside the block; yield the names of the layers for which that works."""
    changed, names = [], set()
    for name, layer in layers.items():
        weight = layer.weight
        if isinstance(weight, nn.Parameter) and weight.is_floating_point():
            names.add(name)
            if not weight.requires_grad:
                changed.append(weight)
                weight.requires_grad_(True)
    try:
        yield names
    finally:
        for weight in changed:
            weight.requires_grad_(False)


def _graph_of(outputs: Any) -> tuple[set[int], bool]:
    """Return the ids of the leaf tensors in the graph of the logits, and whether custom functions may hide a part of it.

    Reformer's reversible layers run inside one custom function, which computes their gradients by itself.
    """
    roots = [output_logits(outputs), getattr(outputs, "aux_loss", None)]
    pending = [root.grad_fn for root in roots if isinstance(root, Tensor) and root.grad_fn is not None]
    seen, leaves, hides = set(pending), set(), False
    while pending:
        node: Any = pending.pop()
        hides |= isinstance(node, torch.autograd.function.BackwardCFunction)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves, hides


def _owners(model: nn.Module) -> dict[int, int]:
    """Count the names of each parameter; a tied weight has several, and one of its layers may run."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def _is_routed(model: nn.Module, name: str, ran: set[str]) -> bool:
    """Return whether a layer that did not run is in one of several alternatives, such as experts, of which another one ran."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        prefix, parent = ".".join(parts[:end]), ".".join(parts[: end - 1])
        if not any(other == prefix or other.startswith(f"{prefix}.") for other in ran):
            container = model.get_submodule(parent)
            return isinstance(container, nn.ModuleList | nn.ModuleDict) or "expert" in parts[end - 1].lower()
    return True

"""The pre-trained model inside the adapted one: no second copy, exact after any number of steps.

Every method starts as the identity change, so the pre-trained model *is* the adapted model with its trainable tensors
at their initial values. Keep those few, swap them in, run, swap back. Switching the adapter off instead would give the
residual weights under PiSSA: another model (METHOD 6.1, 6.2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.fingerprint import fingerprint, first_mismatch
from balora.methods.initial_state import initial_state_of, trainable_parameters
from balora.models.adapted_model import evaluating
from balora.models.fsdp import is_dtensor, local_shard, local_slice, reshard


class PretrainedTeacher:
    """Keeps the trainable tensors' initial values and lends them to the model.

    Args:
        model: An adapted model, before its first step. After steps, pass ``initial``.
        initial: The initial values by parameter name, when the model has already moved away from them (a resumed run).

    Raises:
        BALoraError: The model has been trained since `balora.adapt` made it and ``initial`` is not given, or ``initial``
            is not what the adapter started from: such a teacher would not be the pre-trained model.

    Of a model that FSDP2 has sharded since, each process lends its shards their part of the initial values. Sharding by
    other means is refused by the Trainer.

    With ``offload`` the values stay in the host's memory (pinned where there is a GPU) and are copied over for each
    forward of the teacher, when the student's activations are not there yet: the peak on the device is then that of
    training without a teacher.

    Example:
        >>> import balora, torch, transformers
        >>> config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> model = balora.adapt(transformers.LlamaForCausalLM(config), rank=4)
        >>> teacher = balora.PretrainedTeacher(model)
        >>> with teacher.active():
        ...     logits = model(torch.tensor([[1, 2, 3]])).logits
        >>> logits.requires_grad
        False
    """

    def __init__(self, model: nn.Module, initial: Mapping[str, Tensor] | None = None, *, offload: bool = False) -> None:
        self.model = model
        self.offload = offload
        parameters = dict(trainable_parameters(model))
        if not parameters:
            raise BALoraError(
                "The model has nothing to train, so there is nothing to tell the teacher from the student."
            )
        given = initial if initial is not None else parameters
        missing = parameters.keys() - given.keys()
        if missing:
            raise BALoraError(f"The initial values lack {sorted(missing)[0]}; pass all that the model trains.")
        start = initial_state_of(model)
        if start is not None:
            wrong = first_mismatch(fingerprint((name, given[name]) for name in parameters), start.trainable)
            if wrong is not None:
                raise BALoraError(
                    f"{wrong} is not at its initial value, so this would not be the pre-trained model. Make the teacher "
                    "right after balora.adapt, or pass initial= from the run's initial.safetensors."
                )
        self._initial = {name: self._kept(given[name], p) for name, p in parameters.items()}
        self._parts: dict[str, Tensor] = {}

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The initial values by parameter name, as kept."""
        return self._initial

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model is the pre-trained one: initial values, eval mode, no gradients.

        Call it before the student's forward: tensors that a graph has saved must not be exchanged under it.
        """
        with self._lent(), evaluating(self.model):
            yield

    @contextlib.contextmanager
    def _lent(self) -> Iterator[None]:
        """Inside, every parameter that is trained has its initial value."""
        reshard(self.model)  # what FSDP2 has gathered would stay as it is, and hides the shards
        # Those that learnt when the values were kept: freezing one later does not take it back to where it was.
        parameters = {name: p for name, p in self.model.named_parameters() if name in self._initial or p.requires_grad}
        strange = parameters.keys() ^ self._initial.keys()
        if strange:
            raise BALoraError(
                f"{sorted(strange)[0]} was not trained when the teacher was made, so its initial value is not known. Make the "
                "teacher after deciding what learns."
            )
        current: dict[str, Tensor] = {}
        try:
            for name, parameter in parameters.items():
                if is_dtensor(parameter):
                    current[name] = local_shard(parameter).clone()
                    local_shard(parameter).copy_(self._part(name, parameter), non_blocking=True)
                    continue
                lent = self._initial[name].to(parameter.device, parameter.dtype, non_blocking=True)
                if not self.offload:  # the model may have moved to another device or dtype since the values were kept
                    self._initial[name] = lent
                current[name] = parameter.data
                parameter.data = lent
            yield
        finally:
            reshard(self.model)
            for name, values in current.items():
                if is_dtensor(parameters[name]):
                    local_shard(parameters[name]).copy_(values)
                else:
                    parameters[name].data = values

    def _part(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Of an initial value, what this process has a shard of. The whole one then waits in the host's memory."""
        if name not in self._parts:
            held = local_shard(parameter)
            part = local_slice(self._initial[name].to(held.device, held.dtype), parameter)
            self._parts[name] = self._kept(part, held)
            self._initial[name] = self._initial[name].cpu()
        return self._parts[name]

    def _kept(self, value: Tensor, parameter: Tensor) -> Tensor:
        if not self.offload:
            return value.detach().to(device=parameter.device, dtype=parameter.dtype, copy=True)
        kept = value.detach().to(device="cpu", dtype=parameter.dtype, copy=True)
        return kept.pin_memory() if torch.cuda.is_available() else kept

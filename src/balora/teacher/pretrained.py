"""Teacher: the pre-trained model inside the adapted one. No second copy, and exact after any number of steps.

Every method starts as the identity change, so the pre-trained model *is* the adapted model with its trainable tensors at their
initial values. The teacher stores these values, swaps them in for a forward, and swaps them back. Disabling the adapter instead
would give the residual weights under PiSSA: another model (method.md, departures 1 and 2).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.fingerprint import fingerprint, first_mismatch
from balora.methods.initial_state import initial_state_of, trainable_parameters
from balora.models.adapted_model import clear_weight_caches, evaluating
from balora.models.fsdp import is_dtensor, local_shard, local_slice, reshard


class PretrainedTeacher:
    """Pre-trained model: the adapted model with the initial values of its trainable tensors.

    Args:
        model: Adapted model before its first step. After steps, pass ``initial``.
        initial: Initial values by parameter name, if the model has been trained already (a resumed run).
        offload: Whether to store the values in the host's memory (pinned if there is a GPU) and copy them for each forward of
            the teacher. The student's activations do not exist yet at that time, so the peak on the device is that of training
            without a teacher.

    Raises:
        BALoraError: The model has been trained since `balora.adapt` made it and ``initial`` is not given, or ``initial``
            differs from the adapter's initial values: the teacher would not be the pre-trained model.

    If FSDP2 shards the model later, each process swaps in its shard of the initial values. The Trainer refuses other ways of
    sharding.

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
                "The model has nothing to train: no parameter requires a gradient, so the student would stay the teacher."
            )
        given = initial if initial is not None else parameters
        missing = parameters.keys() - given.keys()
        if missing:
            raise BALoraError(
                f"The initial values lack {sorted(missing)[0]}. Pass the values of all trainable parameters."
            )
        initial_state = initial_state_of(model)
        if initial_state is not None:
            wrong = first_mismatch(fingerprint((name, given[name]) for name in parameters), initial_state.trainable)
            if wrong is not None:
                raise BALoraError(
                    f"{wrong} is not at its initial value, so the teacher would not be the pre-trained model. Make the teacher "
                    "right after balora.adapt, or pass initial= from the run's initial.safetensors."
                )
        self._initial = {name: self._stored(given[name], p) for name, p in parameters.items()}
        self._shards: dict[str, Tensor] = {}

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """Initial values by parameter name."""
        return self._initial

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the model the pre-trained one inside the block: initial values, eval mode, no gradients.

        It may be used inside `torch.autocast`, whose cache of casted weights is cleared on entering and on leaving.
        Use it before the student's forward: the swap would change tensors that the student's graph has saved for backward.
        """
        with self._initial_values(), evaluating(self.model):
            yield

    @contextlib.contextmanager
    def _initial_values(self) -> Iterator[None]:
        """Give every trained parameter its initial value inside the block."""
        reshard(self.model)  # a gathered parameter would keep the student's values
        # All parameters that were trainable at first, because one that was frozen later may have been trained before.
        parameters = {name: p for name, p in self.model.named_parameters() if name in self._initial or p.requires_grad}
        unknown = parameters.keys() ^ self._initial.keys()
        if unknown:
            raise BALoraError(
                f"{sorted(unknown)[0]} was not trained when the teacher was made, so its initial value is not known. Make the "
                "teacher after choosing the trainable parameters."
            )
        current: dict[str, Tensor] = {}
        try:
            for name, parameter in parameters.items():
                if is_dtensor(parameter):
                    current[name] = local_shard(parameter).clone()
                    local_shard(parameter).copy_(self._local_shard(name, parameter), non_blocking=True)
                    continue
                initial = self._initial[name].to(parameter.device, parameter.dtype, non_blocking=True)
                if not self.offload:  # the model may have moved to another device or dtype since the last forward
                    self._initial[name] = initial
                current[name] = parameter.data
                parameter.data = initial
            clear_weight_caches(self.model)
            yield
        finally:
            reshard(self.model)
            for name, values in current.items():
                if is_dtensor(parameters[name]):
                    local_shard(parameters[name]).copy_(values)
                else:
                    parameters[name].data = values
            clear_weight_caches(self.model)

    def parts_of_change(self) -> Callable[[float], None]:
        """Return a function that gives every trained tensor p₀ + a·(p - p₀), for the trained values p of now and any a.

        p₀ are the initial values, so a = 0 is the pre-trained model and a = 1 the trained one. The trained values are copied.
        """
        reshard(self.model)
        parameters = {name: p for name, p in self.model.named_parameters() if name in self._initial}
        trained = {name: local_shard(p).to("cpu", copy=True) for name, p in parameters.items()}

        @torch.no_grad()
        def keep(part: float) -> None:
            reshard(self.model)
            for name, parameter in parameters.items():
                own = local_shard(parameter)
                initial = self._local_shard(name, parameter) if is_dtensor(parameter) else self._initial[name]
                value, before = trained[name].to(own.device), initial.to(own.device)
                # A whole change is the trained value itself, without rounding.
                own.copy_(value if part == 1.0 else torch.lerp(before.float(), value.float(), part))
            clear_weight_caches(self.model)

        return keep

    def _local_shard(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Return this process's shard of an initial value, and move the unsharded value to the host's memory."""
        if name not in self._shards:
            local = local_shard(parameter)
            part = local_slice(self._initial[name].to(local.device, local.dtype), parameter)
            self._shards[name] = self._stored(part, local)
            self._initial[name] = self._initial[name].cpu()
        return self._shards[name]

    def _stored(self, value: Tensor, parameter: Tensor) -> Tensor:
        if not self.offload:
            return value.detach().to(device=parameter.device, dtype=parameter.dtype, copy=True)
        stored = value.detach().to(device="cpu", dtype=parameter.dtype, copy=True)
        return stored.pin_memory() if torch.cuda.is_available() else stored

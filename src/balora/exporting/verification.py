"""Compare an exported model with the trained one: the largest logit difference on a probe, and the allowed one.

A LoRA from a model with frozen weights in 4 or 8 bits is compared with the trained model if the method left the pre-trained
weights unchanged (qlora): the LoRA is exact on the base in the same bits. If the method moved a part of them into the adapter
(qpissa, qbalora), no base that can be loaded has the quantized residual. The LoRA is then the change of the full-precision
weights, and is compared with the trained adapter on the residual before quantization. Shapes: B sequences, T positions.
"""

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.exporting.weights import PREFIX, initial_factors
from balora.loading.pretrained import max_positions
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.quantization.quantize import MAX_RELATIVE_ERROR
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.methods.scaling import scale_change
from balora.models.adapted_model import base_model_of, evaluating

_TEXTS = (
    "Once upon a time there was a little girl who liked to play in the park.",
    "What is 12 times 7? Let's think step by step.",
    "The film was far better than anyone had expected.",
    "balora",
)
_LENGTHS = (24, 17, 9, 3)
_SEED = 20240804
_TOKEN_KEYS = ("_token_id", "_token_index")
ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest logit difference, relative to the largest logit (at least 1), by the narrowest dtype of the weights.

In float32 both models compute the same sums in another order. In half precision each layer's output is rounded to 8 bits
(bfloat16) or 11 bits (float16): in the trained model before the adapter's part is added, in the exported model after it.
Measured on five layers, that moves logits by 2.4 % and 0.2 %. A wrong base or scaling moves them by their own size.
"""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Difference of two models on the probe."""

    largest_difference: float
    """Largest absolute logit difference."""
    largest_logit: float
    """Largest absolute logit of the trained model."""
    positions: int
    """Number of tokens compared (for classifiers: of texts)."""
    allowed: float
    """Largest difference that rounding explains."""

    @property
    def holds(self) -> bool:
        """True if the difference is finite and within the allowed one."""
        return self.largest_difference <= self.allowed

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest_difference:.2g} over {self.positions} positions "
            f"(largest logit {self.largest_logit:.3g}, allowed {self.allowed:.2g})"
        )


Probe = list[dict[str, Tensor]]
"""Batches of model inputs."""


def make_probe(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> Probe:
    """Make batches of seeded random tokens over the vocabulary, and of real text if there is a tokenizer.

    The sequences of a batch differ in length and are padded. A model without a pad token gets them one by one.
    """
    base = base_model_of(model)
    size = len(base.get_input_embeddings().weight)  # type: ignore[operator]  # an adapted embedding has no num_embeddings
    full_config: Any = base.config
    config = full_config.get_text_config()
    # Placeholders of images would need images. Llama 3 has several end tokens.
    values = [
        value for part in (full_config, config) for name, value in vars(part).items() if name.endswith(_TOKEN_KEYS)
    ]
    special = {token for value in values for token in (value if isinstance(value, list | tuple) else [value])}
    positions = max_positions(full_config) or 512  # XLNet's config says -1
    generator = torch.Generator().manual_seed(_SEED)
    ordinary = torch.tensor([token for token in range(size) if token not in special])

    def draw(length: int) -> list[int]:
        return ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()

    rows = [draw(min(length, positions // 2)) for length in _LENGTHS]
    if tokenizer is not None:
        texts = [tokenizer(text)["input_ids"][: positions // 2] for text in _TEXTS]
        rows += [text for text in texts if len(text) > 1 and max(text) < size]
    eos = getattr(config, "eos_token_id", None)
    if full_config.is_encoder_decoder and isinstance(eos, int):
        # BART's classifier reads the sentence at its last end token, and needs one in every row.
        rows = [[token for token in row if token != eos] + [eos] for row in rows]
    pad = getattr(config, "pad_token_id", None)
    groups = [rows[: len(_LENGTHS)], rows[len(_LENGTHS) :]] if isinstance(pad, int) else [[row] for row in rows]
    batches = [_pad(group, pad if isinstance(pad, int) else 0) for group in groups if group]
    if full_config.is_encoder_decoder and not type(base).__name__.endswith("ForSequenceClassification"):
        for batch in batches:
            targets = draw(batch["input_ids"].shape[0] * 7)
            batch["decoder_input_ids"] = torch.tensor(targets).reshape(-1, 7)
    known = inspect.signature(base.forward).parameters
    return [{name: value for name, value in batch.items() if name in known} for batch in batches]


def probe_outputs(model: nn.Module, probe: Probe) -> list[Tensor]:
    """Return the logits at every position that is not padding, in float32 on the CPU, one tensor per batch."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for batch in probe:
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits.float().cpu()
            if logits.dim() == 3 and "decoder_input_ids" not in batch and "attention_mask" in batch:
                logits = logits[batch["attention_mask"].bool()]
            found.append(logits.reshape(-1, logits.shape[-1]))
    return found


def compare(trained: Sequence[Tensor], exported: Sequence[Tensor], dtype: torch.dtype) -> Agreement:
    """Compare the probe outputs of two models. The ``dtype`` of the weights decides the allowed difference.

    Example:
        >>> compare([torch.tensor([[1.0, 2.0]])], [torch.tensor([[1.0, 2.5]])], torch.float32).largest_difference
        0.5
    """
    pairs = list(zip(trained, exported, strict=True))
    same_shape = all(a.shape == b.shape for a, b in pairs)
    difference = max(float((a - b).abs().max()) for a, b in pairs) if same_shape else float("inf")
    if any(not bool(b.isfinite().all()) for _, b in pairs):
        difference = float("nan")
    largest = max(float(a.abs().max()) for a, _ in pairs)
    positions = sum(a.shape[0] for a, _ in pairs)
    return Agreement(difference, largest, positions, ALLOWED.get(dtype, 5e-2) * max(largest, 1.0))


def narrowest_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating dtype of lowest precision among the weights; bfloat16 before float16."""
    dtypes: set[Any] = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return min(dtypes, key=lambda dtype: -torch.finfo(dtype).eps)


def quantized_lora_outputs(
    model: nn.Module,
    base: nn.Module,
    initial: Mapping[str, Tensor],
    probe: Probe,
    trained: Sequence[Tensor],
    scale: float = 1.0,
) -> tuple[list[Tensor], str]:
    """Return the probe outputs that a LoRA on the full-precision ``base`` must agree with, and a note for the user.

    ``initial`` has the initial values of the adapter, and ``trained`` the probe outputs of the quantized ``model``.
    The outputs are those of the model with ``scale`` times its change.
    """
    assert isinstance(model, PeftModel)
    bits = next(module.bits for module in model.modules() if isinstance(module, QuantizedLinear))
    twin = _unquantized(model, base, initial)
    exact = probe_outputs(twin, probe)
    moved = ""
    if probe:
        moved = f", which moves its logits by up to {compare(exact, trained, model.dtype).largest_difference:.2g}"
    if scale != 1:
        scale_change(twin, scale, initial, residual_base=True)
        exact = probe_outputs(twin, probe)
    return exact, (
        "It is for the base in full precision: compared with the trained adapter on the weights as they were before they were "
        f"rounded to {bits} bits{moved}. --to merged keeps them rounded."
    )


@torch.no_grad()
def _unquantized(model: PeftModel, base: nn.Module, initial: Mapping[str, Tensor]) -> nn.Module:
    """Copy the trained model with its frozen weights as they were before quantization, computed from ``base``.

    A ``base`` that is not the model that was quantized raises `BALoraError`.
    """
    twin = copy.deepcopy(model)
    adapted = dict(lora_layers(twin))
    for name, module in list(twin.named_modules()):
        if not isinstance(module, QuantizedLinear):
            continue
        own = name.removeprefix(PREFIX).removesuffix(".base_layer")
        weight = base.get_submodule(own).weight
        assert isinstance(weight, Tensor)
        dtype = weight.dtype
        if own in adapted:
            factors = initial_factors(own, adapted[own], initial)
            weight = dataclasses.replace(factors, scaling=-factors.scaling).add_to(weight)
        plain = module.to_linear(dtype)
        assert isinstance(plain.weight, nn.Parameter)
        error = float(torch.dist(plain.weight.float(), weight.float()) / weight.float().norm().clamp_min(1e-12))
        if not error <= MAX_RELATIVE_ERROR[module.bits]:
            raise BALoraError(
                f"{own} of the pre-trained model is {error:.2g} of its norm away from what was trained on in {module.bits} bits, "
                "more than rounding makes: it is another model's. Name the one that was trained with base=."
            )
        plain.weight.copy_(weight)
        twin.set_submodule(name, plain)
    return twin


def _pad(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": tokens_BT, "attention_mask": mask_BT}

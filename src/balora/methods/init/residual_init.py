"""Initial values from a decomposition of the weights: PiSSA, MiLoRA and OLoRA.

The adapter starts as a part of each pre-trained weight, and the residual is frozen: W = W_res + s·B₀A₀. LoRA-GA and CorDA,
which also need data, use the same residual.
Shapes: O output features, I input features, R adapter rank.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from balora.deprecation import deprecated_names
from balora.errors import BALoraError
from balora.methods.init.by_turns import computed_by_turns
from balora.methods.init.svd import truncated_svd
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import WeightMatrix, frozen_parameter, weight_matrices
from balora.methods.method import AdaptOptions
from balora.methods.quantization.quantize import loaded_bits

Decompose = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""(W: O × I in float32, R, seed) to (A: R × I, B: O × R), the two factors of the part that moves into the adapter."""

_QUANTIZED = (
    "{} is quantized, and this method cannot subtract its adapter from quantized weights. Load the model in bfloat16 or "
    "float32 (method.bits quantizes the residual), or use method 'lora' on the quantized model."
)


def initialize_pissa(model: nn.Module, options: AdaptOptions) -> None:
    """Move the principal singular components of every target weight into its adapter."""
    method, iterations = options.extra["svd"], options.extra["svd_iterations"]
    decompose = functools.partial(principal_factors, method=method, iterations=iterations)
    initialize_from_weights(model, decompose, options.seed)


def initialize_milora(model: nn.Module, options: AdaptOptions) -> None:
    """Move the minor singular components of every target weight into its adapter."""
    initialize_from_weights(model, minor_factors, options.seed)


@torch.no_grad()
def initialize_olora(model: nn.Module, options: AdaptOptions) -> None:
    r"""Set B₀ to the first R columns of Q and A₀ to the first R rows of R in a QR decomposition of each target weight.

    .. math:: W = QR, \quad B_0 = Q_{:r}, \quad A_0 = R_{:r}, \quad W_{res} = W - s B_0 A_0

    The factors are not divided by the scaling, because the columns of B₀ must be orthonormal.

    Reference: Büyükakyüz, OLoRA, 2024, section 3.
    """
    for matrix in weight_matrices(model):
        weight_OI = matrix.weight_OI.float()
        q, r = torch.linalg.qr(weight_OI)
        matrix.set_factors(r[: matrix.rank], q[:, : matrix.rank])
    store_all_residuals(model)


@torch.no_grad()
def initialize_from_weights(model: nn.Module, decompose: Decompose, seed: int) -> None:
    r"""Move a part of every target weight into its adapter, one matrix at a time, on the matrix's device.

    Both factors are divided by :math:`\sqrt{s}`; the residual :math:`W_{res} = W - s B_0 A_0` is frozen.

    Args:
        model: Model with an adapter.
        decompose: Function that returns the two factors of one weight.
        seed: Seed of the first matrix; each further matrix has the next seed.
    """
    matrices = list(weight_matrices(model))

    def factors_of(index: int) -> tuple[Tensor, Tensor]:
        matrix = matrices[index]
        return decompose(matrix.weight_OI.float(), matrix.rank, seed + index)

    for matrix, (factor_a_RI, factor_b_OR) in zip(matrices, computed_by_turns(factors_of, len(matrices)), strict=True):
        root = matrix.scaling**0.5
        matrix.set_factors(factor_a_RI / root, factor_b_OR / root)
    store_all_residuals(model)


def principal_factors(
    weight_OI: Tensor, rank: int, seed: int, *, method: str = "auto", iterations: int = 6
) -> tuple[Tensor, Tensor]:
    r"""Return A (R × I) and B (O × R) of the best rank-R approximation, each with the roots of the singular values (eq. 1-3).

    .. math:: B = U_{:r} S_{:r}^{1/2}, \quad A = S_{:r}^{1/2} V_{:r}^\top

    The further arguments are those of `truncated_svd`.

    Reference: Meng et al., PiSSA, 2024; Chang et al., BA-LoRA, ICLR 2026, eq. 1-3.
    """
    left_OR, values_R, right_RI = truncated_svd(weight_OI, rank, method=method, iterations=iterations, seed=seed)
    root_R = values_R.sqrt()
    return root_R[:, None] * right_RI, left_OR * root_R


def minor_factors(weight_OI: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""Return A (R × I) and B (O × R) of the part of a matrix along its R smallest singular values.

    .. math:: B = U_{-r:} S_{-r:}^{1/2}, \quad A = S_{-r:}^{1/2} V_{-r:}^\top

    The decomposition is always exact, because a randomised one does not find the smallest singular values. The seed is not used.

    Reference: Wang et al., MiLoRA, 2024, eq. 4-6.
    """
    left, values, right = torch.linalg.svd(weight_OI, full_matrices=False)
    root_R = values[-rank:].sqrt()
    return root_R[:, None] * right[-rank:], left[:, -rank:] * root_R


def store_all_residuals(model: nn.Module) -> None:
    """Subtract s·B₀A₀ from every target weight, with the factors that the model has.

    It runs after all factors are computed, because a decomposition may fail: no weight is changed by then.
    """
    changed: list[WeightMatrix] = []
    try:
        for matrix in weight_matrices(model):
            matrix.store_residual()
            changed.append(matrix)
    except BaseException:
        for matrix in changed:
            matrix.undo_residual()
        raise


@contextlib.contextmanager
def residuals_undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Add s·B₀A₀ to every target weight again if the block raises anything; the weights are as before up to rounding."""
    try:
        yield
    except BaseException:
        for matrix in weight_matrices(model):
            matrix.undo_residual()
        raise


def check_residual_targets(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse a target if its frozen weight cannot become a residual: quantized, shared, or not a matrix."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in lora_layers(model):
        problem = _residual_problem(model, name, layer, owners)
        if problem is not None:
            raise BALoraError(problem)


def _residual_problem(model: nn.Module, name: str, layer: LoraLayer, owners: dict[int, list[str]]) -> str | None:
    if loaded_bits(model) is not None:
        return _QUANTIZED.format(name)
    weight = frozen_parameter(layer)
    if weight is None or (weight.is_floating_point() and weight.dim() not in (2, 3)):
        return (
            f"{name} has no weight matrix, and this method needs one. Name the layers to adapt in target_modules, such as "
            "[q_proj, k_proj, v_proj, o_proj], or use method 'lora'."
        )
    if not weight.is_floating_point() or weight.element_size() < 2:
        return _QUANTIZED.format(name)
    if len(owners[id(weight)]) > 1:
        other = next(owner for owner in owners[id(weight)] if not owner.startswith(f"base_model.model.{name}."))
        other = other.removeprefix("base_model.model.").replace(".base_layer.", ".").removesuffix(".weight")
        return (
            f"{name} shares its weight with {other} (tied weights), and this method would change both. Name it in "
            "exclude_modules, use method 'lora', or untie the weights first."
        )
    return None


__getattr__ = deprecated_names(
    __name__,
    {
        "start_from_weights": f"{__name__}.initialize_from_weights",
        "refuse_unsuitable": f"{__name__}.check_residual_targets",
    },
)

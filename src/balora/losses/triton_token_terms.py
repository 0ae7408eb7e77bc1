r"""The token terms as one Triton kernel: from the bare products with the head to the gradient, in the products' dtype.

The torch form (:mod:`balora.losses.token_terms`, which has the formulas) makes some thirty passes over the logits in
float32. This form reads the products twice and writes the gradient once; everything else stays in registers. One program
handles one row, in three steps:

1. Over blocks of columns, each lane keeps its running maximum and the sums of exponentials relative to it, so no block
   waits for a reduction. A reduction at the end turns the lanes' sums into the row's normalisers and divergence.
2. The K largest scores are taken one by one: from the lane with the largest maximum, whose other entries are then read
   again. Only the last one taken is kept. Its score, lane and block decide for every entry whether it is among the K.
3. Over the blocks again, the gradient is written over the teacher's products if there are any, else over the student's.

Without Triton the module can be imported, and `choose_kernel` returns ``"torch"``.
Shapes: m tokens of a chunk, V vocabulary.
"""
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False, check_untyped_defs=False

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from balora.losses.loss_parts import LossTerms
from balora.losses.token_terms import score_scale
from balora.models.lm_head import LinearHead

IMPORT_ERROR = ""
try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = tl = None
    IMPORT_ERROR = str(error)

Kernel = Literal["torch", "triton"]

ON_CUDA: Kernel = "triton"
"""Default kernel on a CUDA device: the faster one where both were measured (docs/explanation/cost.md)."""

BLOCK = 1024
WARPS = 4
"""Lanes and warps of a row: 16 bytes of bfloat16 per thread and load. Chosen by registers, not timed on a GPU."""

INTERPRETED = triton is not None and not isinstance(tl.sum, triton.JITFunction)
"""True if TRITON_INTERPRET=1 was set when Triton was imported: kernels then run on the CPU, slowly."""


def choose_kernel(kernel: Kernel | None, device: torch.device) -> Kernel:
    """Return the requested kernel, or for None the device's default if that can run."""
    if kernel is not None:
        return kernel
    return "triton" if device.type == "cuda" and ON_CUDA == "triton" and not _missing(device) else "torch"


def kernel_problems(kernel: str | None, device: torch.device) -> list[str]:
    """Return a sentence about a requested kernel that is unknown or cannot run on the device."""
    if kernel not in (None, "torch", "triton"):
        return [f"kernel must be 'torch' or 'triton', or None for the default, and it is {kernel!r}."]
    missing = _missing(device) if kernel == "triton" else ""
    return [f"kernel='triton' needs {missing}; pass kernel='torch', or None for the default."] if missing else []


def _missing(device: torch.device) -> str:
    """Return the requirement of the Triton kernel that is not met, or an empty string."""
    if triton is None:
        return f"Triton, which cannot be imported ({IMPORT_ERROR})"
    if device.type == "cuda" or INTERPRETED:
        return ""
    return f"a CUDA device, or TRITON_INTERPRET=1 before Python starts, and the tensors are on {device.type}"


def _jit(function=None, **options):
    """Compile a kernel with Triton. Without Triton return the function unchanged, which is then never called."""
    if triton is not None:
        return triton.jit(function, **options)
    return function or (lambda undecorated: undecorated)


_LOW = None if triton is None else tl.constexpr(-1e37)  # score of a missing entry: finite, so differences of two are 0


def token_terms_of_products_(
    student_mV: Tensor,
    teacher_mV: Tensor | None,
    head: LinearHead,
    teacher_bias_V: Tensor | None,
    labels_m: Tensor,
    terms: LossTerms,
    values_3m: Tensor,
    gradient: bool,
) -> None:
    """Do what :func:`balora.losses.token_terms.token_terms_` does, from products and with bias, scale and soft cap.

    Products are hidden states times their head's weight, contiguous, any floating dtype. Arithmetic and ``values_3m`` are
    in float32, or in float64 for float64 products; the gradient is in the products' dtype. ``head`` is the student's: its
    bias, scale and soft cap are used, the last two also for the teacher.
    """
    tokens, width = student_mV.shape
    block = min(BLOCK, triton.next_power_of_2(width))
    temperature = terms.temperature if teacher_mV is not None else 1.0
    with torch.cuda.device_of(student_mV):  # Triton launches on the current device, which may be another one
        _row[(tokens,)](
            student_mV,
            teacher_mV,
            None if head.bias_V is None else head.bias_V.contiguous(),
            None if teacher_bias_V is None else teacher_bias_V.contiguous(),
            labels_m,
            values_3m,
            values_3m.stride(0),
            width,
            float(head.logit_scale * score_scale(terms, head.softcap)),
            float(temperature),
            1.0 if head.softcap is None else head.softcap / temperature,
            float(terms.consistency * temperature),
            float(terms.diversity),
            TEACHER=teacher_mV is not None,
            TOP_K=min(terms.top_k, width) if terms.diversity else 0,
            SOFTCAP=head.softcap is not None,
            SQUARE=temperature == 2.0,
            GRADIENT=gradient,
            TASK=terms.task_loss,
            NON_TARGET=terms.consistency_tokens == "non_target",
            ACC=tl.float64 if values_3m.dtype == torch.float64 else tl.float32,
            BLOCK=block,
            BLOCKS=triton.next_power_of_2(triton.cdiv(width, block)),
            num_warps=WARPS,
        )


# The number of tokens and the start of a chunk vary: do not compile a kernel for each.
@_jit(do_not_specialize=["values_stride"], do_not_specialize_on_alignment=["labels", "values"])
def _row(
    student,
    teacher,
    bias,
    teacher_bias,
    labels,
    values,
    values_stride,
    width,
    factor: tl.float64,  # without these, Triton would round Python's floats to float32
    temperature: tl.float64,
    cap: tl.float64,
    kl_factor: tl.float64,
    diversity: tl.float64,
    TEACHER: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SQUARE: tl.constexpr,
    GRADIENT: tl.constexpr,
    TASK: tl.constexpr,
    NON_TARGET: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    factor, temperature = tl.full((), factor, ACC), tl.full((), temperature, ACC)
    cap, kl_factor, diversity = tl.full((), cap, ACC), tl.full((), kl_factor, ACC), tl.full((), diversity, ACC)
    token = tl.program_id(0).to(tl.int64)
    student += token * width
    if TEACHER:
        teacher += token * width
    lanes = tl.arange(0, BLOCK)
    label = tl.load(labels + token)

    # 1. Each lane keeps its largest score, and sums of exponentials relative to the soft-capped value of that score.
    maximum = tl.full((BLOCK,), _LOW, ACC)
    soft_sum = tl.zeros((BLOCK,), ACC)  # sum of exp(z / T)
    sharp_sum = tl.zeros((BLOCK,), ACC)  # sum of exp(z)
    teacher_maximum, teacher_soft_sum = maximum, soft_sum
    difference = soft_sum  # sum of exp(teacher) · (teacher - student)
    for start in range(0, width, BLOCK):
        columns = start + lanes
        inside = columns < width
        score = _score(student, bias, columns, inside, factor, ACC)
        new_maximum = tl.maximum(maximum, score)
        shift = _softcapped(new_maximum, cap, SOFTCAP)
        max_offset = _softcapped(maximum, cap, SOFTCAP) - shift
        offset = tl.where(inside, _softcapped(score, cap, SOFTCAP), _LOW) - shift
        rescale, exponential = tl.exp(max_offset), tl.exp(offset)
        compared = exponential
        if NON_TARGET:  # the divergence is without the target
            compared = tl.where(columns == label, 0.0, exponential)
        soft_sum = soft_sum * rescale + compared
        if SQUARE:
            sharp_sum = sharp_sum * rescale * rescale + exponential * exponential
        else:
            sharp_sum = sharp_sum * tl.exp(temperature * max_offset) + tl.exp(temperature * offset)
        maximum = new_maximum
        if TEACHER:
            score = _score(teacher, teacher_bias, columns, inside, factor, ACC)
            new_maximum = tl.maximum(teacher_maximum, score)
            shift = _softcapped(new_maximum, cap, SOFTCAP)
            teacher_max_offset = _softcapped(teacher_maximum, cap, SOFTCAP) - shift
            teacher_offset = tl.where(inside, _softcapped(score, cap, SOFTCAP), _LOW) - shift
            rescale, exponential = tl.exp(teacher_max_offset), tl.exp(teacher_offset)
            if NON_TARGET:
                exponential = tl.where(columns == label, 0.0, exponential)
            difference = rescale * (difference + teacher_soft_sum * (teacher_max_offset - max_offset)) + exponential * (
                teacher_offset - offset
            )
            teacher_soft_sum = teacher_soft_sum * rescale + exponential
            teacher_maximum = new_maximum

    top = tl.max(maximum, 0)
    shift = _softcapped(top, cap, SOFTCAP)
    max_offset = _softcapped(maximum, cap, SOFTCAP) - shift
    soft_sum = tl.sum(soft_sum * tl.exp(max_offset), 0)
    sharp_sum = tl.sum(sharp_sum * tl.exp(temperature * max_offset), 0)
    known = (label >= 0) & (label < width)
    target = _softcapped(_score(student, bias, label, known, factor, ACC), cap, SOFTCAP) - shift
    target = tl.where(known, target, float("nan"))  # a kernel cannot raise an error for a label out of range
    weight = tl.full((), 1.0, ACC)
    if TASK == "dft":
        weight = tl.exp(temperature * target) / sharp_sum
    if TASK == "none":
        weight = tl.full((), 0.0, ACC)
    tl.store(values + token, weight * (tl.log(sharp_sum) - temperature * target))
    if TEACHER:
        teacher_shift = _softcapped(tl.max(teacher_maximum, 0), cap, SOFTCAP)
        teacher_max_offset = _softcapped(teacher_maximum, cap, SOFTCAP) - teacher_shift
        rescale = tl.exp(teacher_max_offset)
        difference = tl.sum(rescale * (difference + teacher_soft_sum * (teacher_max_offset - max_offset)), 0)
        teacher_soft_sum = tl.sum(teacher_soft_sum * rescale, 0)
        if NON_TARGET:  # a token that has all the probability leaves nothing
            soft_sum, teacher_soft_sum = tl.maximum(soft_sum, 1e-37), tl.maximum(teacher_soft_sum, 1e-37)
        divergence = difference / teacher_soft_sum - tl.log(teacher_soft_sum) + tl.log(soft_sum)
        tl.store(values + values_stride + token, temperature * temperature * divergence)

    if TOP_K > 0:
        last, last_lane, last_block, exp_sum, mean = _largest(
            student, bias, maximum, shift, width, factor, temperature, cap, TOP_K, SOFTCAP, ACC, BLOCK, BLOCKS
        )
        tl.store(values + 2 * values_stride + token, mean - tl.log(exp_sum))

    # 3. The gradient, after every thread has read what another one overwrites.
    if GRADIENT:
        tl.debug_barrier()
        for start in range(0, width, BLOCK):
            columns = start + lanes
            inside = columns < width
            score = _score(student, bias, columns, inside, factor, ACC)
            capped = _softcapped(score, cap, SOFTCAP)
            offset = capped - shift
            if SQUARE:
                exponential = tl.exp(offset)
                sharp_exponential = exponential * exponential
            else:
                sharp_exponential = tl.exp(temperature * offset)
            gradient = weight * (sharp_exponential / sharp_sum - tl.where(columns == label, 1.0, 0.0))
            if TEACHER:
                if not SQUARE:
                    exponential = tl.exp(offset)
                other = _softcapped(_score(teacher, teacher_bias, columns, inside, factor, ACC), cap, SOFTCAP)
                pull = exponential * (kl_factor / soft_sum) - tl.exp(other - teacher_shift) * (
                    kl_factor / teacher_soft_sum
                )
                gradient += tl.where(columns == label, 0.0, pull) if NON_TARGET else pull
            if TOP_K > 0:
                in_top_k = ~_after(score, lanes, start // BLOCK, last, last_lane, last_block)
                gradient += tl.where(
                    in_top_k, sharp_exponential * (diversity / exp_sum) * (temperature * offset - mean), 0.0
                )
            if SOFTCAP:
                gradient *= 1.0 - (capped / cap) * (capped / cap)
            output = teacher if TEACHER else student
            tl.store(output + columns, gradient.to(student.dtype.element_ty), mask=inside)


@_jit
def _largest(
    row,
    bias,
    maximum,
    shift,
    width,
    factor,
    temperature,
    cap,
    TOP_K: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Take the K largest scores in the order of score, then lane, then block.

    Returns score, lane and block of the last one taken, Σ exp(z) over the K, and the mean of z weighted by exp(z).
    """
    lanes, blocks = tl.arange(0, BLOCK), tl.arange(0, BLOCKS)
    last = tl.full((), float("inf"), ACC)
    last_lane, last_block = tl.full((), -1, tl.int32), tl.full((), -1, tl.int32)
    exp_sum, mean = tl.full((), 0.0, ACC), tl.full((), 0.0, ACC)
    for _ in range(TOP_K):
        largest, lane = tl.max(maximum, 0, return_indices=True)
        columns = blocks * BLOCK + lane
        score = _score(row, bias, columns, columns < width, factor, ACC)
        free = _after(score, lane, blocks, last, last_lane, last_block)
        last_block = tl.min(tl.where(free & (score == largest), blocks, BLOCKS), 0)
        last, last_lane = largest, lane
        free = _after(score, lane, blocks, last, last_lane, last_block)
        maximum = tl.where(lanes == lane, tl.max(tl.where(free, score, _LOW), 0), maximum)
        offset = temperature * (_softcapped(largest, cap, SOFTCAP) - shift)
        exp_sum += tl.exp(offset)
        mean += tl.exp(offset) * offset
    return last, last_lane, last_block, exp_sum, mean / exp_sum


@_jit
def _score(row, bias, columns, inside, factor, ACC: tl.constexpr):
    """Return the head's scaled affine outputs, and `_LOW` for columns beyond the vocabulary."""
    score = tl.load(row + columns, mask=inside, other=0.0).to(ACC)
    if bias is not None:  # -inf becomes a number, as in LinearHead.affine
        score += tl.maximum(tl.load(bias + columns, mask=inside, other=0.0).to(ACC), -1e30)
    return tl.where(inside, score * factor, _LOW)


@_jit
def _softcapped(score, cap, SOFTCAP: tl.constexpr):
    """Return the logit over T: the score, or cap · tanh(score), by its series where 1 - exp(-2x) loses digits."""
    if not SOFTCAP:
        return score
    rescale = tl.exp(-2.0 * tl.abs(score))
    tanh = tl.where(score < 0, rescale - 1.0, 1.0 - rescale) / (1.0 + rescale)
    if score.dtype == tl.float32:
        square = score * score
        series = 62 / 2835 - square * (1382 / 155925)
        series = score * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * series))))
        tanh = tl.where(square < 0.12, series, tanh)
    return cap * tanh


@_jit
def _after(score, lane, block, last, last_lane, last_block):
    """Return whether an entry comes after the last one taken."""
    return (score < last) | ((score == last) & ((lane > last_lane) | ((lane == last_lane) & (block > last_block))))

r"""The token terms as one Triton kernel, from the bare products with the head to the gradient in their own dtype.

The torch form (`losses.tokens`, which has the formulas) takes some thirty passes over the logits in float32; this one
reads the products twice and writes the gradient once, all else stays in registers. One program has one row:

1. over blocks of columns, each lane keeps the running maximum of what it has met and the sums relative to it, so that
   no block waits for a reduction; one at the end makes the row's maxima, normalisers and divergence of the lanes'.
2. the K largest come out one by one, from the lane with the largest maximum, whose other entries are then looked at
   again. What is kept of them is their order's end: the last one's value, lane and block say of every entry whether it
   is among the K.
3. over the blocks again, the gradient is written where the teacher's products were, or else the student's.

Importing this module imports Triton, so it is imported where it is used.
Shapes: m tokens of a chunk, V vocabulary.
"""
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False, check_untyped_defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from balora.losses.token_terms import TokenTerms
from balora.models.lm_head import LinearHead

BLOCK = 1024
WARPS = 4
"""Lanes and warps to a row: 16 bytes of bfloat16 to a thread and load. Chosen by registers, not timed on a GPU."""

INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 stood in the environment when Triton was imported: kernels then run on the CPU, slowly."""

_LOW = tl.constexpr(-1e37)  # where there is no entry: finite, as differences of two of them have to be 0


def token_terms_of_products_(
    student_mV: Tensor,
    teacher_mV: Tensor | None,
    head: LinearHead,
    teacher_bias_V: Tensor | None,
    labels_m: Tensor,
    terms: TokenTerms,
    values_3m: Tensor,
    gradient: bool,
) -> None:
    """Do what :func:`balora.losses.token_terms.token_terms_` does, the heads' bias, scale and soft cap included.

    Args:
        student_mV: The student's hidden states times its head's weight, contiguous, any floating dtype. Arithmetic is
            in float32, or in float64 where that is given.
        teacher_mV: The teacher's, likewise; None exactly where the consistency weight is 0.
        head: The student's, for all but its weight.
        teacher_bias_V: The teacher's bias; its scale and soft cap are the student's.
        labels_m: Targets, in [0, V).
        terms: Weights and settings.
        values_3m: Receives cross-entropy, T² KL and negative entropy, unweighted, in the arithmetic's dtype. A row of
            weight 0 is left alone.
        gradient: Whether the gradient is wanted: in the products' dtype, in the teacher's place where there is a
            teacher, the student's otherwise.
    """
    tokens, width = student_mV.shape
    block = min(BLOCK, triton.next_power_of_2(width))
    temperature = terms.temperature if teacher_mV is not None else 1.0
    with torch.cuda.device_of(student_mV):  # Triton launches on the current device, whose tensors these need not be
        _row[(tokens,)](
            student_mV,
            teacher_mV,
            None if head.bias_V is None else head.bias_V.contiguous(),
            None if teacher_bias_V is None else teacher_bias_V.contiguous(),
            labels_m,
            values_3m,
            values_3m.stride(0),
            width,
            float(head.logit_scale * terms.score_scale),
            float(temperature),
            1.0 if terms.softcap is None else terms.softcap / temperature,
            float(terms.consistency * temperature),
            float(terms.diversity),
            TEACHER=teacher_mV is not None,
            TOP_K=min(terms.top_k, width) if terms.diversity else 0,
            SOFTCAP=terms.softcap is not None,
            SQUARE=temperature == 2.0,
            GRADIENT=gradient,
            ACC=tl.float64 if values_3m.dtype == torch.float64 else tl.float32,
            BLOCK=block,
            BLOCKS=triton.next_power_of_2(triton.cdiv(width, block)),
            num_warps=WARPS,
        )


# Neither the number of tokens nor where a chunk begins is worth a compilation.
@triton.jit(do_not_specialize=["values_stride"], do_not_specialize_on_alignment=["labels", "values"])
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
    pull: tl.float64,
    diversity: tl.float64,
    TEACHER: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SQUARE: tl.constexpr,
    GRADIENT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    factor, temperature = tl.full((), factor, ACC), tl.full((), temperature, ACC)
    cap, pull, diversity = tl.full((), cap, ACC), tl.full((), pull, ACC), tl.full((), diversity, ACC)
    token = tl.program_id(0).to(tl.int64)
    student += token * width
    if TEACHER:
        teacher += token * width
    lanes = tl.arange(0, BLOCK)

    # 1. What each lane keeps: the largest score, and sums of exponentials relative to that score's bent value.
    high = tl.full((BLOCK,), _LOW, ACC)
    soft = tl.zeros((BLOCK,), ACC)  # of exp(z / T)
    sharp = tl.zeros((BLOCK,), ACC)  # of exp(z)
    teacher_high, teacher_soft = high, soft
    apart = soft  # of exp(teacher) · (teacher - student)
    for start in range(0, width, BLOCK):
        columns = start + lanes
        inside = columns < width
        score = _score(student, bias, columns, inside, factor, ACC)
        higher = tl.maximum(high, score)
        shift = _bent(higher, cap, SOFTCAP)
        fall = _bent(high, cap, SOFTCAP) - shift
        over = tl.where(inside, _bent(score, cap, SOFTCAP), _LOW) - shift
        fade, power = tl.exp(fall), tl.exp(over)
        soft = soft * fade + power
        if SQUARE:
            sharp = sharp * fade * fade + power * power
        else:
            sharp = sharp * tl.exp(temperature * fall) + tl.exp(temperature * over)
        high = higher
        if TEACHER:
            score = _score(teacher, teacher_bias, columns, inside, factor, ACC)
            higher = tl.maximum(teacher_high, score)
            shift = _bent(higher, cap, SOFTCAP)
            teacher_fall = _bent(teacher_high, cap, SOFTCAP) - shift
            teacher_over = tl.where(inside, _bent(score, cap, SOFTCAP), _LOW) - shift
            fade, power = tl.exp(teacher_fall), tl.exp(teacher_over)
            apart = fade * (apart + teacher_soft * (teacher_fall - fall)) + power * (teacher_over - over)
            teacher_soft = teacher_soft * fade + power
            teacher_high = higher

    top = tl.max(high, 0)
    shift = _bent(top, cap, SOFTCAP)
    fall = _bent(high, cap, SOFTCAP) - shift
    soft = tl.sum(soft * tl.exp(fall), 0)
    sharp = tl.sum(sharp * tl.exp(temperature * fall), 0)
    label = tl.load(labels + token)
    known = (label >= 0) & (label < width)
    target = _bent(_score(student, bias, label, known, factor, ACC), cap, SOFTCAP) - shift
    target = tl.where(known, target, float("nan"))  # as much as a kernel can say of a label that is none
    tl.store(values + token, tl.log(sharp) - temperature * target)
    if TEACHER:
        teacher_shift = _bent(tl.max(teacher_high, 0), cap, SOFTCAP)
        teacher_fall = _bent(teacher_high, cap, SOFTCAP) - teacher_shift
        fade = tl.exp(teacher_fall)
        apart = tl.sum(fade * (apart + teacher_soft * (teacher_fall - fall)), 0)
        teacher_soft = tl.sum(teacher_soft * fade, 0)
        divergence = apart / teacher_soft - tl.log(teacher_soft) + tl.log(soft)
        tl.store(values + values_stride + token, temperature * temperature * divergence)

    if TOP_K > 0:
        last, last_lane, last_block, mass, mean = _largest(
            student, bias, high, shift, width, factor, temperature, cap, TOP_K, SOFTCAP, ACC, BLOCK, BLOCKS
        )
        tl.store(values + 2 * values_stride + token, mean - tl.log(mass))

    # 3. The gradient, once no thread will read of the row what is another's to overwrite.
    if GRADIENT:
        tl.debug_barrier()
        for start in range(0, width, BLOCK):
            columns = start + lanes
            inside = columns < width
            score = _score(student, bias, columns, inside, factor, ACC)
            bent = _bent(score, cap, SOFTCAP)
            over = bent - shift
            if SQUARE:
                power = tl.exp(over)
                whole = power * power
            else:
                whole = tl.exp(temperature * over)
            gradient = whole / sharp - tl.where(columns == label, 1.0, 0.0)
            if TEACHER:
                if not SQUARE:
                    power = tl.exp(over)
                gradient += power * (pull / soft)
                other = _bent(_score(teacher, teacher_bias, columns, inside, factor, ACC), cap, SOFTCAP)
                gradient -= tl.exp(other - teacher_shift) * (pull / teacher_soft)
            if TOP_K > 0:
                taken = ~_after(score, lanes, start // BLOCK, last, last_lane, last_block)
                gradient += tl.where(taken, whole * (diversity / mass) * (temperature * over - mean), 0.0)
            if SOFTCAP:
                gradient *= 1.0 - (bent / cap) * (bent / cap)
            place = teacher if TEACHER else student
            tl.store(place + columns, gradient.to(student.dtype.element_ty), mask=inside)


@triton.jit
def _largest(
    row,
    bias,
    high,
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

    Returns the last one's score, lane and block, Σ exp(z) over the K and the mean of z, so weighted.
    """
    lanes, blocks = tl.arange(0, BLOCK), tl.arange(0, BLOCKS)
    last = tl.full((), float("inf"), ACC)
    last_lane, last_block = tl.full((), -1, tl.int32), tl.full((), -1, tl.int32)
    mass, mean = tl.full((), 0.0, ACC), tl.full((), 0.0, ACC)
    for _ in range(TOP_K):
        largest, lane = tl.max(high, 0, return_indices=True)
        columns = blocks * BLOCK + lane
        score = _score(row, bias, columns, columns < width, factor, ACC)
        free = _after(score, lane, blocks, last, last_lane, last_block)
        last_block = tl.min(tl.where(free & (score == largest), blocks, BLOCKS), 0)
        last, last_lane = largest, lane
        free = _after(score, lane, blocks, last, last_lane, last_block)
        high = tl.where(lanes == lane, tl.max(tl.where(free, score, _LOW), 0), high)
        over = temperature * (_bent(largest, cap, SOFTCAP) - shift)
        mass += tl.exp(over)
        mean += tl.exp(over) * over
    return last, last_lane, last_block, mass, mean / mass


@triton.jit
def _score(row, bias, columns, inside, factor, ACC: tl.constexpr):
    """The head's affine map, scaled; what lies outside is lower than anything."""
    score = tl.load(row + columns, mask=inside, other=0.0).to(ACC)
    if bias is not None:  # -inf becomes a number, as in LinearHead.affine
        score += tl.maximum(tl.load(bias + columns, mask=inside, other=0.0).to(ACC), -1e30)
    return tl.where(inside, score * factor, _LOW)


@triton.jit
def _bent(score, cap, SOFTCAP: tl.constexpr):
    """The logit over T: the score itself, or cap · tanh of it, with the series where 1 - exp(-2x) loses digits."""
    if not SOFTCAP:
        return score
    fade = tl.exp(-2.0 * tl.abs(score))
    tanh = tl.where(score < 0, fade - 1.0, 1.0 - fade) / (1.0 + fade)
    if score.dtype == tl.float32:
        square = score * score
        series = 62 / 2835 - square * (1382 / 155925)
        series = score * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * series))))
        tanh = tl.where(square < 0.12, series, tanh)
    return cap * tanh


@triton.jit
def _after(score, lane, block, last, last_lane, last_block):
    """Whether an entry comes after the last one taken."""
    return (score < last) | ((score == last) & ((lane > last_lane) | ((lane == last_lane) & (block > last_block))))

"""The change of each weight matrix, which needs no data: its size, its spectrum, and intruder dimensions.

Reference: Shuttleworth et al., LoRA vs Full Fine-tuning: An Illusion of Equivalence, 2024, arXiv 2410.21228.
Shapes: O outputs, I inputs, K leading singular vectors.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.auditing.drift import entropy_rank
from balora.auditing.intervals import Bootstrap
from balora.auditing.measure import Found, Measure
from balora.evaluation.model_under_test import LoadedModel

LEADING = 10
"""K: leading singular vectors of the tuned matrix that are compared."""
COSINE = 0.6
"""Largest cosine to a singular vector of the base below which a leading vector is an intruder."""
SUBSPACE = 16
"""r: leading output directions of the base inside which the change's energy is measured."""
PROJECTED = 64
"""Columns of the random projection that finds the spectrum of a change of low rank."""
LARGE, MOST_LARGE = 1024, 64
"""A matrix is large if its smaller side is above the first number. At most the second number of large matrices, evenly spread over
the model, are decomposed."""


class Weights:
    """Changes of the weight matrices. ``shared``: both models are one set of weights, and only adapted matrices differ."""

    name = "weights"

    def __init__(self, folder: Path, shared: Callable[[], bool], seed: int) -> None:
        self.folder, self._shared, self.seed = folder, shared, seed

    @torch.no_grad()
    def run_base(self, loaded: LoadedModel) -> None:
        """Keep the base's matrices on disk, one file each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, str] = {}
        for name, matrix in matrices(loaded.model, only_changed=self._shared()):
            if matrix is not None:
                files[name] = f"{len(files):05}.safetensors"
                save_file({"w": matrix.cpu().contiguous()}, self.folder / files[name])
        (self.folder / "files.json").write_text(json.dumps(files), encoding="utf-8")

    @torch.no_grad()
    def run_tuned(self, loaded: LoadedModel) -> None:
        """Compare the matrices one by one."""
        files: dict[str, str] = json.loads((self.folder / "files.json").read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = []
        left_out: dict[str, list[str]] = {"unmatched": [], "unreadable": [], "infinite": []}
        sizes = {name: min(_shape(self.folder / file)) for name, file in files.items()}
        large = [name for name, size in sizes.items() if size > LARGE]
        step = max(len(large) / MOST_LARGE, 1.0)
        decomposed = {large[int(i * step)] for i in range(min(len(large), MOST_LARGE))}
        for name, tuned in matrices(loaded.model, only_changed=self._shared()):
            if tuned is None:
                left_out["unreadable"].append(name)
                continue
            if name not in files:
                left_out["unmatched"].append(name)
                continue
            base = load_file(self.folder / files[name])["w"]
            (self.folder / files[name]).unlink()
            if base.shape != tuned.shape:
                left_out["unmatched"].append(name)
                continue
            base = base.to(tuned.device)
            if not math.isfinite(float(base.float().norm()) + float(tuned.float().norm())):
                left_out["infinite"].append(name)
                continue
            full = sizes[name] <= LARGE or name in decomposed
            rows.append({"matrix": name, "shape": list(base.shape), **compare(base, tuned, full=full)})
        (self.folder / "rows.json").write_text(json.dumps({"rows": rows, **left_out}), encoding="utf-8")

    def result(self) -> Found:
        """See `Part`."""
        kept = json.loads((self.folder / "rows.json").read_text(encoding="utf-8"))
        rows = kept["rows"]
        found = Found(evidence={"weights": sorted(rows, key=lambda row: -row["relative"])[:40]})
        for key, reason in (
            ("unmatched", "matrices have no counterpart of the same shape in the other model"),
            ("unreadable", "matrices are stored in few bits"),
            ("infinite", "matrices hold NaN or infinity"),
        ):
            if kept[key]:
                found.not_measured[f"weights: {len(kept[key])} {reason}"] = f"such as {kept[key][0]}"
        if not rows:
            found.not_measured["weights"] = "no matrix could be compared"
            return found
        found.measures = weight_measures(rows, self.seed)
        skipped = sum(not row["decomposed"] for row in rows)
        if skipped:
            found.notes.append(
                f"weights: {skipped} of {len(rows)} large matrices were measured by their size alone, without a decomposition."
            )
        found.notes.append(f"weights: {len(rows)} matrices; intervals are over matrices.")
        return found


def weight_measures(rows: list[dict[str, Any]], seed: int) -> list[Measure]:
    """Summarise the matrices."""
    whole = Bootstrap(len(rows), seed)
    changed = [row for row in rows if row["decomposed"] and row["relative"] > 0]
    seen = [row for row in rows if row["decomposed"]]
    measures = [
        Measure(
            name="weights.relative_change", label="‖ΔW‖ / ‖W‖, mean over matrices", count=len(rows), of="matrices",
            value=whole.mean([row["relative"] for row in rows]),
        ),
        Measure(
            name="weights.intruders", label=f"intruder dimensions among the {LEADING} leading directions, per matrix",
            count=len(seen), of="matrices", value=Bootstrap(len(seen), seed).mean([row["intruders"] for row in seen]),
        ),
    ]  # fmt: skip
    if changed:
        bootstrap = Bootstrap(len(changed), seed)
        measures += [
            Measure(
                name="weights.change_rank", label="effective rank of ΔW, mean over changed matrices", count=len(changed),
                of="matrices",
                value=bootstrap.mean([row["rank"] for row in changed]),
            ),
            Measure(
                name="weights.inside", label=f"energy of ΔW inside W's {SUBSPACE} leading output directions", unit="share",
                count=len(changed), of="matrices", value=bootstrap.mean([row["inside"] for row in changed]),
            ),
        ]  # fmt: skip
    return measures


def compare(base_OI: Tensor, tuned_OI: Tensor, *, full: bool = True) -> dict[str, Any]:
    """Compare two versions of a matrix.

    Returns:
        ``relative`` ‖ΔW‖/‖W‖ (Frobenius) and, with ``full``: ``rank`` (effective rank of ΔW), ``inside`` (share of ‖ΔW‖² in
        the span of W's leading output directions), ``intruders`` (count) with their ``cosines``, and ``spectrum`` of ΔW.
    """
    wide = torch.float64 if base_OI.device.type in ("cpu", "cuda") else torch.float32
    base_OI, tuned_OI = base_OI.to(wide), tuned_OI.to(wide)
    delta_OI = tuned_OI - base_OI
    size, change = float(base_OI.norm()), float(delta_OI.norm())
    found: dict[str, Any] = {"relative": change / size if size else 0.0, "decomposed": full, "intruders": 0}
    if not full or change == 0:
        return {**found, "rank": 0.0, "inside": 0.0, "cosines": [], "spectrum": []}
    top_OR, cosines_K = _directions(base_OI, left_singular_vectors(tuned_OI, LEADING))
    values = change_spectrum(delta_OI, size)
    return {
        **found,
        "rank": entropy_rank(values.cpu().numpy()),
        "inside": float((top_OR.T @ delta_OI).norm() ** 2) / change**2,
        "intruders": int((cosines_K < COSINE).sum()),
        "cosines": [round(float(c), 4) for c in cosines_K],
        "spectrum": [float(v) for v in values[:64]],
    }


def _directions(base_OI: Tensor, leading_OK: Tensor) -> tuple[Tensor, Tensor]:
    """Return W's leading directions, and the greatest cosine of each leading direction of W + ΔW to any of W's directions.

    The squares of a vector's cosines to orthogonal directions sum to at most 1. So the greatest one is often known from W's
    first directions, and only otherwise are all of them computed.
    """
    for count in (2 * SUBSPACE, None):
        directions_OR = left_singular_vectors(base_OI, count)
        cosines_RK = directions_OR.T @ leading_OK
        found_K = cosines_RK.abs().amax(0)
        rest_K = (1.0 - cosines_RK.square().sum(0)).clamp_min(0).sqrt()
        if count is None or (directions_OR.shape[1] == count and bool((found_K >= rest_K).all())):
            break
    return directions_OR[:, : min(SUBSPACE, max(directions_OR.shape[1] // 2, 1))], found_K


def change_spectrum(delta_OI: Tensor, size: float) -> Tensor:
    """Return the singular values of a change, the largest first; ``size`` is ‖W‖.

    The change by an adapter has a low rank. Then a projection onto a random subspace keeps all of it, which is tested, and a
    small matrix is decomposed. What is below float32's rounding of W is no change.
    """
    short = min(delta_OI.shape)
    if short > 2 * PROJECTED:
        generator = torch.Generator().manual_seed(0)
        probe_IP = torch.randn(delta_OI.shape[1], PROJECTED, generator=generator, dtype=torch.float32).to(delta_OI)
        range_OP = torch.linalg.qr(delta_OI @ probe_IP).Q
        projected_PI = range_OP.T @ delta_OI
        whole = float(delta_OI.norm()) ** 2
        if whole - float(projected_PI.norm()) ** 2 <= min((1e-7 * size) ** 2, 1e-6 * whole) + 1e-13 * whole:
            delta_OI = projected_PI
    rows, columns = delta_OI.shape
    values = torch.linalg.eigvalsh(delta_OI @ delta_OI.T if rows <= columns else delta_OI.T @ delta_OI)
    values = values.flip(0).clamp_min(0).sqrt()
    return torch.where(values > values[0] * 1e-7, values, 0.0)  # below it the squares are rounding


def left_singular_vectors(matrix_OI: Tensor, most: int | None = None) -> Tensor:
    """Return the left singular vectors with a value above rounding, O × R, the largest first, and at most ``most``.

    They come from the smaller of the two Gram matrices; in float64 the squares keep enough digits.
    """
    wide = matrix_OI.shape[0] <= matrix_OI.shape[1]
    values, vectors = _largest_eigenpairs(matrix_OI if wide else matrix_OI.T, most)
    keep = values > values[0] * 1e-14
    if wide:
        return vectors[:, keep]
    return (matrix_OI @ vectors[:, keep]) / values[keep].sqrt()


def _largest_eigenpairs(matrix: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of M Mᵀ, the largest first."""
    count = len(matrix)
    if most is None or most >= count // 2 or matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return values.flip(0)[:most], vectors.flip(1)[:, :most]
    # LAPACK computes a few eigenvectors in a fraction of the time of all; torch has no such function.
    array = matrix.numpy()  # BLAS stores matrices by columns
    gram = dsyrk(1.0, array, lower=1) if array.flags.f_contiguous else dsyrk(1.0, array.T, trans=1, lower=1)
    few, basis = eigh(gram, lower=True, subset_by_index=(count - most, count - 1), overwrite_a=True, check_finite=False)
    return torch.from_numpy(few[::-1].copy()), torch.from_numpy(basis[:, ::-1].copy())


def matrices(model: nn.Module, *, only_changed: bool) -> Iterator[tuple[str, Tensor | None]]:
    """Yield each weight matrix of a model as outputs × inputs, adapters merged in; None if it is stored in few bits.

    Args:
        model: A model, with or without peft adapter, enabled or not.
        only_changed: Leave out matrices that an adapter neither changes nor replaces.
    """
    inside: set[str] = set()
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        plain = name.removeprefix("base_model.model.")
        if isinstance(module, BaseTunerLayer):
            inside.add(name)
            yield from ((f"{plain}.weight", matrix) for matrix in _merged(module))
        elif isinstance(module, ModulesToSaveWrapper):
            inside.add(name)
            active = (
                module.original_module if module.disable_adapters else module.modules_to_save[module.active_adapters[0]]
            )
            yield from (
                (f"{plain}.{key}", _oriented(p, module)) for key, p in active.named_parameters() if p.dim() == 2
            )
        else:
            for key, parameter in module.named_parameters(recurse=False):
                if only_changed and not parameter.requires_grad:
                    continue
                whole = f"{plain}.{key}" if plain else key
                if parameter.dim() == 3 and parameter.is_floating_point():  # a stack of experts
                    yield from ((f"{whole}[{i}]", matrix) for i, matrix in enumerate(parameter.detach()))
                elif parameter.dim() == 2:
                    yield whole, _oriented(parameter, module)


def _oriented(parameter: Tensor, module: nn.Module) -> Tensor | None:
    if not parameter.is_floating_point():
        return None
    return parameter.detach().T if isinstance(module, Conv1D) else parameter.detach()


def _merged(layer: Any) -> Iterator[Tensor | None]:
    """Yield the weight that an adapted layer computes with, in float32: rounding to few digits would hide a small change."""
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        yield None
        return
    if not layer.disable_adapters:
        merged = copy.deepcopy(layer).float()
        merged.merge(safe_merge=True)
        base = merged.get_base_layer()
        weight = base.weight
    yield weight.detach().float().T if isinstance(base, Conv1D) else weight.detach().float()


def _shape(path: Path) -> tuple[int, ...]:
    with safe_open(path, "np") as file:
        return tuple(file.get_slice("w").get_shape())

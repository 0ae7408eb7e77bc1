"""Checks that need a GPU, one row for each. `gpu_session.py` runs them; `--tiny` runs them on any machine.

- ``autocast``: under bfloat16 autocast student and teacher have their own weights, and the loss is near float32's.
- ``fused_adamw``: the fused form of AdamW against the plain one.
- ``flash``: scaled_dot_product_attention's flash backend against eager attention, with and without padding. The package
  flash-attn is not needed.
- ``compile``: one step of a compiled model against the eager one, and their times.
- ``random_state``: a run with dropout that is killed and resumed, against one that is not (`session_runs.py`).
- ``four_bits``: 4 bits through bitsandbytes: trains, exports, loads.
- ``fsdp``: FSDP version 2 in one process, against no sharding.
- ``memory``: the estimate of `balora validate` against the allocator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import balora
import session_runs
from balora.objective import Objective
from balora.training.steps.generation_step import GenerationStep
from result_rows import Rows, summary
from session_inputs import DEVICE, Inputs, argument_parser, attempt, prepare

WEIGHTS = {"consistency": 1.0, "diversity": 0.005, "spectral": 0.005, "variance": 0.0}
"""The consistency weighs as much as the task, so that a wrong teacher shows in the gradient."""
BOUNDS = {"autocast": 0.03, "fused_adamw": 1e-4, "flash": 0.03, "compile": 0.03}
"""Largest relative difference of a loss (``fused_adamw``: of the weights' changes) that rounding explains."""


class Case:
    """An adapted model away from its start, its training step and a batch."""

    def __init__(self, inputs: Inputs, dtype: str = "float32", rows: int = 8, **options: Any) -> None:
        base = inputs.load(dtype, **options)
        self.model = balora.adapt(base, "balora", rank=4 if inputs.tiny else 16, svd="randomized")
        self.teacher = balora.PretrainedTeacher(self.model)
        self.step = GenerationStep(self.model, Objective(balora.RegularizationConfig(), "generation"), self.teacher)
        self.batch = inputs.collate(inputs.rows("train", rows))

    def perturb(self, size: float = 0.3) -> None:
        """Move the adapter away from its start, the same way at each call."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(size * parameter.float().std().to(parameter.dtype) * noise)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def loss(self, batch: dict[str, Tensor] | None = None, model: Callable[..., Any] | None = None) -> Any:
        """Return the parts of one step's loss."""
        inputs = dict(self.batch if batch is None else batch)
        labels = inputs.pop("labels")
        self.model.train()
        return self.step.train(
            self.model if model is None else model, inputs, labels, WEIGHTS, num_items=None, share=1.0
        )[0]

    def measured(
        self, batch: dict[str, Tensor] | None = None, model: Callable[..., Any] | None = None
    ) -> dict[str, Any]:
        """Return the parts as numbers, and the gradient."""
        self.model.zero_grad()
        parts = self.loss(batch, model)
        parts.loss.backward()
        gradient = torch.cat([p.grad.float().flatten() for p in self.parameters()])
        names = ("loss", "task", "consistency", "diversity", "spectral")
        return {**{name: float(getattr(parts, name).detach()) for name in names}, "gradient": gradient}


def autocast(inputs: Inputs, rows: Rows) -> None:
    """Compare the loss under bfloat16 autocast with float32's; at the start the teacher must be the student."""
    case = Case(inputs)
    with torch.autocast(DEVICE, torch.bfloat16):
        start = float(case.loss().consistency.detach())
    case.perturb()
    exact = case.measured()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = case.measured()
    off = _differences(found, exact)
    # A cached cast of the weights would give the teacher the student's weights, and a consistency near that of the start.
    separate = (
        abs(found["consistency"] - exact["consistency"]) <= 0.25 * exact["consistency"]
        and start < 0.1 * found["consistency"]
    )
    rows.add(
        kind="autocast", consistency_at_start=start, own_weights=bool(separate), float32=_numbers(exact),
        bfloat16=_numbers(found), differences=off, bound=BOUNDS["autocast"],
        within=off["loss"] <= BOUNDS["autocast"] and bool(separate),
    )  # fmt: skip


def fused_adamw(inputs: Inputs, rows: Rows) -> None:
    """Take a few steps with AdamW's fused and its plain form, from the same start on the same batch."""
    case = Case(inputs)
    start = [p.detach().clone() for p in case.parameters()]
    moved, seconds = {}, {}
    for name, options in (("plain", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
        with torch.no_grad():
            for parameter, value in zip(case.parameters(), start, strict=True):
                parameter.copy_(value)
        optimizer, times = torch.optim.AdamW(case.parameters(), lr=1e-4, weight_decay=0.0, **options), []
        for _ in range(3 if inputs.tiny else 6):
            optimizer.zero_grad()
            case.loss().loss.backward()
            begun = _now()
            optimizer.step()
            times.append(_now() - begun)
        moved[name] = torch.cat([(p.detach() - s).flatten() for p, s in zip(case.parameters(), start, strict=True)])
        seconds[name] = summary(times[1:])
    off = {name: float((moved[name] - moved["plain"]).norm() / moved["plain"].norm()) for name in ("foreach", "fused")}
    rows.add(kind="fused_adamw", seconds=seconds, differences=off, bound=BOUNDS["fused_adamw"],
             within=max(off.values()) <= BOUNDS["fused_adamw"])  # fmt: skip


def flash(inputs: Inputs, rows: Rows) -> None:
    """Compare attention's forms: eager in float32 and bfloat16, sdpa as torch chooses, sdpa's flash backend alone."""
    kept = {}
    for attention, dtype in (("eager", "float32"), ("eager", "bfloat16"), ("sdpa", "bfloat16")):
        case = Case(inputs, dtype, attn_implementation=attention)
        case.perturb(0.1)
        shortest = int(case.batch["attention_mask"].sum(1).min())
        full = {name: value[:, :shortest] for name, value in case.batch.items()}
        for rows_are, batch in (("full", full), ("padded", case.batch)):
            kept[f"{attention}, {dtype}, {rows_are}"] = _numbers(_measured_or_reason(case, batch))
            if attention == "sdpa":
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    kept[f"flash, {dtype}, {rows_are}"] = _numbers(_measured_or_reason(case, batch))
        del case
    off = {}
    for rows_are in ("full", "padded"):
        exact = kept[f"eager, float32, {rows_are}"]["loss"]
        for name in ("eager", "sdpa", "flash"):
            found = kept[f"{name}, bfloat16, {rows_are}"].get("loss")
            off[f"{name}, {rows_are}"] = None if found is None else abs(found - exact) / abs(exact)
    wanted = [off["sdpa, full"], off["sdpa, padded"], off["flash, full"]]
    within = all(value is not None and value <= BOUNDS["flash"] for value in wanted)
    rows.add(kind="flash", losses=kept, differences=off, bound=BOUNDS["flash"], within=within)


def compile_(inputs: Inputs, rows: Rows) -> None:
    """Compare a step of the compiled model with the eager one, then time both."""
    case = Case(inputs, "bfloat16")
    case.perturb(0.1)
    exact = case.measured()
    backend, problem = "aot_eager" if inputs.tiny else "inductor", None  # inductor compiles for minutes on a CPU
    begun = _now()
    try:
        compiled = torch.compile(case.model, backend=backend)
        found = case.measured(model=compiled)
    except Exception as error:  # no compiler on the machine, for example
        backend, problem = "aot_eager", f"{type(error).__name__}: {str(error)[:300]}"
        torch._dynamo.reset()
        compiled = torch.compile(case.model, backend=backend)
        found = case.measured(model=compiled)
    took, times = _now() - begun, {"eager": [], "compiled": []}
    for _ in range(2 if inputs.tiny else 12):
        for name, model in (("eager", None), ("compiled", compiled)):
            begun = _now()
            case.measured(model=model)
            times[name].append(_now() - begun)
    off, graphs = _differences(found, exact), torch._dynamo.utils.counters["stats"].get("unique_graphs")
    rows.add(
        kind="compile", backend=backend, problem=problem, first_step_seconds=took, graphs=graphs,
        graph_breaks=sum(torch._dynamo.utils.counters["graph_break"].values()),
        seconds={name: summary(values[1:]) for name, values in times.items()}, all=times["compiled"],
        differences=off, bound=BOUNDS["compile"], within=off["loss"] <= BOUNDS["compile"],
    )  # fmt: skip


def _measured_or_reason(case: Case, batch: dict[str, Tensor]) -> dict[str, Any]:
    try:
        return case.measured(batch)
    except RuntimeError as error:
        return {"refused": str(error)[:200]}


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "gradient"}


def _differences(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    off = {name: abs(found[name] - exact[name]) / abs(exact[name]) for name in ("loss", "task", "consistency")}
    return {**off, "gradient": float((found["gradient"] - exact["gradient"]).norm() / exact["gradient"].norm())}


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS = {
    "autocast": autocast,
    "fused_adamw": fused_adamw,
    "flash": flash,
    "compile": compile_,
    "random_state": session_runs.random_state,
    "four_bits": session_runs.four_bits,
    "fsdp": session_runs.fsdp,
    "memory": session_runs.memory,
}


def main() -> None:
    """Parse the arguments and measure."""
    parser = argument_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    inputs, rows = prepare(given), Rows("cuda_only", given.output)
    for part in given.parts:
        attempt(rows, part, lambda name=part: PARTS[name](inputs, rows))


if __name__ == "__main__":
    main()

"""Measure the time of each phase of a step, variants in turns over the same batches: `python benchmarks/phases.py`.

A phase does not count the phases inside it. Time outside all phases is the rest (embedding, masks, indexing, labels). The
lower bound ("floor") is the time of a step whose terms are free: a step without regularizers, and the teacher's forward to
its hidden states.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from balora.losses import chunked, generation
from result_rows import Rows
from shapes import MAIN, TINY, Shape
from variants import Variant, load, prepare

ORDER = ("stock", "off", "cached", "online", "reference")
STUDENT, TEACHER, HEAD = "student's layers, forward", "teacher's layers, forward", "head, products"
TERMS, SPECTRUM, BACKWARD, OPTIMIZER, REST = "terms of the tokens", "spectrum", "backward", "optimizer", "rest"
PHASES = (STUDENT, TEACHER, HEAD, TERMS, SPECTRUM, BACKWARD, OPTIMIZER, REST)


class Phases:
    """Counts seconds by phase while functions are watched."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Count time to this phase, except for phases inside it."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def watching(self, owner: Any, attribute: str, name: str | Callable[[], str]) -> Iterator[None]:
        """Count calls of a function as a phase inside the context."""
        original = vars(owner).get(attribute)
        call = getattr(owner, attribute)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.inside(name if isinstance(name, str) else name()):
                return call(*args, **kwargs)

        setattr(owner, attribute, watched)
        try:
            yield
        finally:
            if original is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, original)


def phases_of(variant: Variant, batch: dict[str, torch.Tensor], clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of one step by phase."""
    phases = Phases(clock)
    points = (
        (transformers.LlamaModel, "forward", lambda: STUDENT if torch.is_grad_enabled() else TEACHER),
        # The time in neither layers nor head: the loss for stock, only masks for the others.
        (transformers.LlamaForCausalLM, "forward", TERMS if variant.name == "stock" else REST),
        (variant.model.get_output_embeddings(), "forward", HEAD),
        (chunked, "_scores", HEAD),
        (chunked._Gradients, "add", HEAD),
        (chunked, "token_terms_", TERMS),
        (variant, "loss", TERMS if variant.name == "reference" else REST),
        (generation, "logit_spectral_ratio", SPECTRUM),
        (torch.linalg, "svdvals", SPECTRUM),
        (torch.Tensor, "backward", BACKWARD),
        (variant.optimizer, "step", OPTIMIZER),
    )
    with contextlib.ExitStack() as watches:
        for point in points:
            watches.enter_context(phases.watching(*point))
        if variant.teacher is not None:
            teacher = variant.teacher.get_output_embeddings()
            watches.enter_context(phases.watching(teacher, "forward", HEAD))
        with phases.inside(REST):
            variant.step(batch)
    return phases.seconds


def measure(shape: Shape, rounds: int, slow_rounds: int, output: Path | None, clock: Callable[[], float]) -> None:
    """Write a row for each variant and one for the lower bound."""
    rows = Rows("phases", output)
    batches = shape.batches(2)
    variants, found = {}, {name: [] for name in ORDER}
    for name in ORDER:
        variants[name], _open = prepare(name, shape, load(name, shape), batches)
        variants[name].step(batches[0])
        variants[name].keep_open = _open
    for turn in range(rounds):
        for name in ORDER if turn % 2 else ORDER[::-1]:
            if name != "reference" or turn < slow_rounds:
                found[name].append(phases_of(variants[name], batches[turn % 2], clock))
    median = {
        name: {phase: statistics.median(one[phase] for one in all_rounds) for phase in PHASES}
        for name, all_rounds in found.items()
    }
    for name, seconds in median.items():
        rows.add(kind="phases", variant=name, shape=shape, seconds=seconds, total=sum(seconds.values()))
    total = {name: sum(seconds.values()) for name, seconds in median.items()}
    floor = total["off"] + median["online"][TEACHER]
    rows.add(kind="floor", shape=shape, seconds=floor, online_over_floor=total["online"] / floor,
             reference_over_floor=total["reference"] / floor)  # fmt: skip


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds of the reference")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds, for a machine with other work")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    measure(TINY if given.tiny else MAIN, given.rounds, given.slow_rounds, given.output, clock)


if __name__ == "__main__":
    main()

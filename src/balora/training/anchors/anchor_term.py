"""The anchors' term of a training run: which anchors a micro-batch holds, their divergence, its weight, and the drift.

The forward and backward of the anchors run before those of the micro-batch and on their own, so that the activations of both
never exist together. Every draw depends only on the seed and the position in the run: a resumed run draws the same, and so do
several processes together.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from balora.anchoring.budget import OBSERVATIONS, WINDOW, BudgetWeight
from balora.anchoring.correction import Drift
from balora.anchoring.rows import AnchorRows, collate, positions, rows_of_part, rows_per_step
from balora.anchoring.teacher import AnchorTeacher
from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.losses.loss_parts import Teacher
from balora.models.adapted_model import evaluating
from balora.models.fsdp import is_sharded
from balora.training.steps.train_step import TrainStep

logger = logging.getLogger("balora")
STATE = "anchor_state.json"
"""File of a checkpoint with the weight that follows a budget."""
_EVAL_ROWS = 16
"""Largest batch in which a drift is measured."""
_GROUPS = 16
"""Least number of batches, if there are as many rows: their spread gives the standard error."""
_CHECKS = 20
"""Measurements on control rows during a run with a budget, whatever its length."""
_CHECK_ROWS = 64
"""Largest number of control rows of one of these measurements."""


class AnchorTerm:
    """Anchors of one run.

    Args:
        anchors: Settings.
        rows: The rows, with those that are held out.
        step: The run's step, which runs student and teacher.
        tokens_per_step: Tokens of the task in an optimizer step, of all processes together.
        pad_token: Number of the padding token.
        seed: Seed of the draws.
        process: Rank of this process, and ``processes`` their number.
    """

    def __init__(
        self,
        anchors: Anchors,
        rows: AnchorRows,
        step: TrainStep,
        *,
        tokens_per_step: float,
        pad_token: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.anchors, self.rows, self.step = anchors, rows, step
        self.causal = step.objective.task == "generation"
        self.pad_token, self.seed = pad_token, seed
        self.process, self.processes = process, processes
        self.counts = [positions(row, causal=self.causal) for row in rows.rows]
        if not all(self.counts):
            raise BALoraError("An anchor has no position to compare; leave out texts of a single token.")
        lengths = [len(row["input_ids"]) for row in rows.rows]
        share = anchors.share * anchors.every
        self.per_step = rows_per_step(share, tokens_per_step, sum(lengths) / len(lengths), processes)
        self.weight = BudgetWeight(anchors.weight, None if anchors.measure_only else anchors.budget)
        self.teacher: AnchorTeacher | None = None
        self._micro = (-1, 0)

    @property
    def device(self) -> torch.device:
        """Device of the model's inputs."""
        return next(self.step.model.parameters()).device

    def cache_teacher(self) -> None:
        """Run the pre-trained model once over all anchors, unless ``teacher_cache`` is off."""
        if self.teacher is not None or self.anchors.teacher_cache == "off" or self.anchors.measure_only:
            return
        self.teacher = AnchorTeacher(
            lambda rows: self._online(self.step.model, rows),
            self.counts,
            memory=self.anchors.memory * 2**20,
            temperature=self.anchors.temperature,
            head_learns=self.step.head_learns(),
            # A sharded model runs in all processes together.
            processes=1 if is_sharded(self.step.model) else self.processes,
        )

    def loss(self, model: nn.Module, step: int, micro_batches: int) -> tuple[Tensor | None, float]:
        """Return this micro-batch's part of the unweighted term, on the graph (None: no anchor), and the weight.

        The parts of all micro-batches of an optimizer step add up to its term; those of all processes have it as their mean.
        """
        self._micro = (step, self._micro[1] + 1 if self._micro[0] == step else 0)
        weight = self.weight.value * self._step_factor(step)
        rows, total = self._drawn(step, self._micro[1], micro_batches)
        if not weight or not rows:
            return None, weight
        batch = self._batch(rows)
        labels = batch.pop("labels", None)
        teacher = self._teacher_of(model, rows)
        items = total / self.processes
        term = self.step.hold(model, batch, labels, teacher, temperature=self.anchors.temperature, num_items=items)
        return term, weight

    def advance(self, model: nn.Module, step: int, mean_over_processes: Any, total_steps: int) -> None:
        """Let the weight follow the budget: at the first micro-batch of a step, from the steps before it.

        The terms of a few trained anchors are noisy, and below those of other anchors after some passes over them. Twenty
        times in a run, a sample of the control rows is therefore measured too, without gradients.
        """
        first = self._micro[0] != step
        self.weight.advance(step, mean_over_processes, total_steps)
        every = max(2 * WINDOW, total_steps // _CHECKS)
        if self.weight.budget is not None and self.rows.control and first and step and step % every == 0:
            count = min(_CHECK_ROWS, len(self.rows.control))
            begin = step // every * count % len(self.rows.control)
            rows = (self.rows.control + self.rows.control)[begin : begin + count]
            window = max(WINDOW, total_steps // OBSERVATIONS)
            self.weight.include(self.drift(model, rows).mean, count / (window * self.per_step))

    @torch.no_grad()
    def drift(self, model: nn.Module, rows: Sequence[int] | None = None) -> Drift:
        """Return KL(pre-trained ‖ tuned) in nats per token (regression: the squared difference) on the anchors held out.

        ``rows``: numbers of other rows, such as those that steer a budget.
        """
        rows = self.rows.held_out if rows is None else rows
        size = min(max(len(rows) // _GROUPS, 1), _EVAL_ROWS)
        sums, counts = [], []
        with evaluating(self.step.model):
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                batch = self._batch(part)
                labels = batch.pop("labels", None)
                teacher = self._teacher_of(model, part)
                sums.append(float(self.step.hold(model, batch, labels, teacher, temperature=1.0, num_items=1.0)))
                counts.append(float(sum(self.counts[row] for row in part)))
        return Drift.of_groups(sums, counts)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside its step."""
        return self.weight.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.weight.restore(state, self.device)

    def facts(self) -> dict[str, Any]:
        """Return the record of the anchors: their source and number, and how the teacher is kept."""
        kept = None if self.teacher is None else ("exact" if self.teacher.exact else "likeliest tokens")
        return {
            **self.rows.facts,
            "rows": len(self.rows.rows),
            "held_out": len(self.rows.held_out),
            **({"control": len(self.rows.control)} if self.rows.control else {}),
            "per_step": self.per_step,
            "teacher": kept or "online",
            **({"measure_only": True} if self.anchors.measure_only else {}),
        }

    def _step_factor(self, step: int) -> float:
        every = self.anchors.every
        block, offset = divmod(step, every)
        drawn = random.Random(f"anchor step {self.seed} {block}").randrange(every)
        return float(every) if offset == drawn else 0.0

    def _drawn(self, step: int, micro: int, micro_batches: int) -> tuple[list[int], float]:
        """Return this process's rows of a micro-batch, and the compared positions of the whole optimizer step."""
        rows = self.rows.at(step // self.anchors.every * self.per_step, self.per_step)
        own = rows_of_part(rows, micro, micro_batches, self.process, self.processes)
        return own, float(sum(self.counts[row] for row in rows))

    def _batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = collate([self.rows.rows[row] for row in rows], self.pad_token, causal=self.causal)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _teacher_of(self, model: nn.Module, rows: Sequence[int]) -> Teacher:
        if self.teacher is not None:
            return self.teacher.at(rows, self.device)
        return self._online(model, list(rows))

    def _online(self, model: nn.Module, rows: list[int]) -> Any:
        batch = self._batch(rows)
        labels = batch.pop("labels", None)
        return self.step.teacher_on_anchors(model, batch, labels)

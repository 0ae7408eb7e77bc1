"""End of a run with a drift budget: what was reached, and the last correction of a drift above its budget.

A budget is corrected on control rows and reported on others. Only a drift above the budget can be corrected: every trained
tensor then keeps a part of its change (`PretrainedTeacher.parts_of_change`).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from balora.anchoring.correction import TOLERANCE, Drift, part_within
from balora.models.adapted_model import evaluating

logger = logging.getLogger("balora")
ROWS = 256
"""Training rows on which the consistency term is measured for its budget, and as many others to report it."""


def keep_budgets(trainer: Any) -> dict[str, float]:
    """Measure and correct the budgets of a trained model, in place; return what to record. Every process must call it."""
    found: dict[str, float] = {}
    term, weight = trainer.anchor_term, trainer.consistency_weight
    if weight is not None:
        found |= {"consistency_budget": weight.budget, "consistency_final_weight": weight.value}
        samples = _samples_of_training_rows(trainer)
        if samples is not None:
            measure = lambda rows: _consistency(trainer, rows)  # noqa: E731
            found["consistency_scale"] = _correct(
                trainer, weight.budget, lambda: measure(samples[0]), "consistency term", "training rows"
            )
        elif weight.mean is not None:
            _say(trainer, "consistency_reached is a moving average of the last steps, because the rows have no length.")
            found["consistency_reached"] = weight.mean
    if term is not None and not term.anchors.measure_only:
        found["anchor_final_weight"] = term.weight.value
        if term.anchors.budget is not None:
            found["anchor_budget"] = term.anchors.budget
            found["anchor_scale"] = _correct(
                trainer,
                term.anchors.budget,
                lambda: term.drift(trainer.model, term.rows.control),
                "drift",
                "anchors that were not trained on",
            )
    # Reported after both corrections, because the second also changes what the first has measured.
    if weight is not None and samples is not None:
        found |= _recorded("consistency_reached", measure(samples[1]))
    if term is not None:
        found |= _recorded("anchor_drift", term.drift(trainer.model))
    return found


def _correct(trainer: Any, budget: float, measure: Callable[[], Drift], what: str, rows: str) -> float:
    """Keep the part of the change whose drift is the budget, and say so; return the part."""
    drift = measure()
    error = "" if math.isnan(drift.error) else f" ± {drift.error:.2g}"
    reached = f"Budget: the {what} is {drift.mean:.4g}{error} on {rows}, and the budget is {budget:.4g}"
    if not drift.mean > budget * (1.0 + TOLERANCE):
        less = f"{reached}. Less was used than allowed; nothing is corrected." if drift.mean < 0.8 * budget else ""
        _say(trainer, less or f"{reached}. Nothing is corrected.")
        return 1.0
    keep = trainer.teacher.parts_of_change()

    def measured(part: float) -> float:
        keep(part)
        return measure().mean

    part, final = part_within(budget, drift.mean, measured)
    keep(part)
    _say(
        trainer,
        f"{reached}. Every trained tensor therefore keeps {part:.3f} of its change, at which it is {final:.4g}.",
    )
    return part


def _say(trainer: Any, text: str) -> None:
    logger.info(text)
    trainer.objective.notices.append(text)


def _recorded(name: str, drift: Drift) -> dict[str, float]:
    return {name: drift.mean, **({} if math.isnan(drift.error) else {f"{name}_error": drift.error})}


def _samples_of_training_rows(trainer: Any) -> tuple[Sequence[int], Sequence[int]] | None:
    """Draw the training rows that steer the consistency budget, and those that report it; None if they have no length."""
    rows = trainer.train_dataset
    if rows is None or isinstance(rows, IterableDataset) or not hasattr(rows, "__len__") or len(rows) < 2:
        return None
    count = min(ROWS, len(rows) // 2)
    drawn = random.Random(f"budget {trainer.args.seed}").sample(range(len(rows)), 2 * count)
    return drawn[:count], drawn[count:]


@torch.no_grad()
def _consistency(trainer: Any, rows: Sequence[int]) -> Drift:
    """Return the unweighted consistency term on training rows, without dropout and with the pre-trained model itself."""
    step = trainer.step
    weights = dict.fromkeys(("consistency", "diversity", "spectral", "variance"), 0.0) | {"consistency": 1.0}
    sums, counts = [], []
    cache, step.teacher_cache = getattr(step, "teacher_cache", None), None
    try:
        with evaluating(trainer.model):
            for inputs in trainer.get_eval_dataloader(Subset(trainer.train_dataset, list(rows))):
                inputs = trainer._prepare_inputs(dict(inputs))
                labels = inputs.pop("labels")
                count = step.count_items(labels)
                with trainer.compute_loss_context_manager():
                    parts, _, _ = step.train(trainer.model, inputs, labels, weights, num_items=count, share=1.0)
                assert parts.consistency is not None
                sums.append(float(parts.consistency) * float(count))
                counts.append(float(count))
    finally:
        step.teacher_cache = cache
    if trainer.accelerator.num_processes > 1:  # the last rows may be repeated, so that all processes have as many
        pairs = torch.tensor([sums, counts], dtype=torch.float64, device=trainer.args.device).T.contiguous()
        sums, counts = trainer.accelerator.gather(pairs).T.tolist()
    return Drift.of_groups(sums, counts)

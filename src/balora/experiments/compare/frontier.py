"""The frontier of a comparison: a task score against drift, one curve for each method and knob, and what is read off it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from balora.errors import BALoraError, suggest
from balora.experiments.compare.plan import SCALE, Axes, Variant, is_used
from balora.experiments.compare.rows import DRIFT, TRAIN_LOSS, Row
from balora.experiments.compare.tables import Comparison

_LOWER_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae", DRIFT)
SCALES = (0.25, 0.5, 0.75, 1.0)
WEIGHTS = (1.0, 3.0, 10.0, 30.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over seeds with Student's 95 % interval; None for one seed."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Estimate from the finite values; None if there are none.

        Example:
            >>> Estimate.of([1.0])
            Estimate(mean=1.0, low=None, high=None, count=1)
        """
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        from balora.evaluation.significance.intervals import estimate  # imports scipy

        found = estimate(finite)
        low, high = (None, None) if found is None else found.interval()
        return cls(statistics.fmean(finite), low, high, len(finite))


@dataclasses.dataclass(frozen=True)
class FrontierPoint:
    """One value of the knob."""

    value: float | None
    """Value of the knob; None for a method that no knob concerns."""
    drift: Estimate
    score: Estimate
    seeds: Mapping[int, tuple[float, float]]
    """Drift and score of each seed."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One method over the values of one knob, in their order."""

    name: str
    variant: str
    knob: str | None
    points: Sequence[FrontierPoint]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Value that a curve has at a level of the other axis, by interpolation; the estimate is None if it cannot be read off."""

    curve: str
    kind: str
    """``score``: the score at a drift. ``drift``: the drift at a score."""
    level: float
    estimate: Estimate | None
    remark: str = ""
    """Reason why there is no value, or seeds that are missing in it."""


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Curves and readings of a comparison."""

    score: str
    drift: str
    curves: Sequence[Curve]
    readings: Sequence[Reading]
    notes: Sequence[str]

    @property
    def lower_is_better(self) -> bool:
        """True for a loss."""
        return is_lower_better(self.score)


def is_lower_better(score: str) -> bool:
    """Return whether a score is a loss, of which less is better.

    Example:
        >>> is_lower_better("loss"), is_lower_better("gsm8k/accuracy"), is_lower_better("audit/perplexity")
        (True, False, True)
    """
    return score.rpartition("/")[2].rpartition("_")[2] in _LOWER_IS_BETTER or score == DRIFT


def frontier_variants(config: Mapping[str, Any], variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants with their drift measured: those without ``+anchor`` are not held, but measured on the same anchors.

    Raises:
        BALoraError: The config has no anchors, and the model of its task cannot write them itself.
    """
    if config.get("anchor") in (None, False, "off") and config.get("task") != "generation":
        raise BALoraError(
            "A frontier measures the drift on anchors, and the config has none. Only a causal language model writes them "
            "itself; give the config text that is not the task's, as anchor: FILE."
        )
    return [dataclasses.replace(v, measured=True, anchored=v.anchored or None) for v in variants]


def default_knobs(variants: Sequence[Variant]) -> dict[str, list[float]]:
    """Return the knobs of a frontier for which none is given: the anchors' weight, and the scale, which costs no training."""
    weights = {"anchor.weight": list(WEIGHTS)} if any(variant.anchored for variant in variants) else {}
    return {**weights, SCALE: list(SCALES)}


def check_knobs(knobs: Axes) -> None:
    """Refuse a knob whose values are not all numbers."""
    for key, values in knobs.items():
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
        if wrong:
            raise BALoraError(f"--knob {key} has {wrong[0]!r}; the values of a knob are numbers, such as {key}=1,3,10.")


def check_score(config: Mapping[str, Any]) -> None:
    """Refuse a frontier whose runs would have no task score, before any of them is trained."""
    data = config.get("data")
    if isinstance(data, Mapping) and data.get("eval") in (None, False):
        raise BALoraError(
            "A frontier needs a task score, and the runs have none without evaluation rows: set data.eval."
        )


def make_frontier(
    comparison: Comparison,
    variants: Sequence[Variant],
    knobs: Axes,
    *,
    score: str | None = None,
    drift: str = DRIFT,
    at_drift: Sequence[float] = (),
    at_score: Sequence[float] = (),
) -> Frontier:
    """Make the curves of a comparison whose knobs were varied one by one, and read values off them.

    Args:
        comparison: The comparison.
        variants: Its variants.
        knobs: Its knobs with their values.
        score: Score of the task; default the first that is not the drift.
        drift: Score that is the drift.
        at_drift: Drifts at which each curve's score is read. Default: the middle of the range that all curves share.
        at_score: Scores at which each curve's drift is read. Default: the score of the baseline's own training if the
            comparison has a baseline, else the middle of the range that all curves share.

    Raises:
        BALoraError: No run has the score or the drift.
    """
    rows = [row for row in comparison.rows if row.status == "finished"]
    known = list(dict.fromkeys(name for row in rows for name in row.scores))
    score = score or next((name for name in known if name not in (drift, DRIFT, TRAIN_LOSS)), None)
    for wanted in (score, drift):
        if wanted not in known:
            has = f"The runs have {', '.join(known)}." if known else "No run is finished."
            missing = "a task score; set data.eval" if wanted is None else f"the score {wanted}"
            raise BALoraError(f"No run has {missing}.{suggest(str(wanted), known)} {has} All runs are kept.")
    assert score is not None
    config = comparison.about.get("config", {})
    curves = [_curve(rows, v, key, knobs, config, score, drift) for v in variants for key in _keys(v, knobs, config)]
    curves = [curve for curve in curves if curve.points]
    lines = [curve for curve in curves if len(curve.points) > 1]
    alone = [curve.name for curve in curves if len(curve.points) == 1]
    notes = [f"{name} has one point, so nothing can be read off between points." for name in alone]
    drifts, scores = list(at_drift), list(at_score)
    if not drifts:
        drifts = _shared_middle(lines, lambda point: point.drift.mean, logarithmic=True)
        if not drifts and len(lines) > 1:
            notes.append(
                "No drift lies in the range of every curve, so there is no reading at equal drift; choose one with --at-drift."
            )
    if not scores:
        scores = _baseline_score(rows, comparison.baseline, score) or _shared_middle(
            lines, lambda point: point.score.mean
        )
        if not scores and len(lines) > 1:
            notes.append(
                "No score lies in the range of every curve, so there is no reading at equal score; choose one with --at-score."
            )
    readings = [_read(curve, "score", level, is_lower_better(score)) for level in drifts for curve in curves]
    readings += [_read(curve, "drift", level, is_lower_better(score)) for level in scores for curve in curves]
    if any(estimate.low is None for curve in curves for p in curve.points for estimate in (p.drift, p.score)):
        notes.append("A point of one seed has no interval: take more seeds.")
    return Frontier(score, drift, curves, readings, notes)


def _keys(variant: Variant, knobs: Axes, config: Mapping[str, Any]) -> list[str | None]:
    return [key for key in knobs if is_used(key, variant, config)] or [None]


def _curve(
    rows: Sequence[Row],
    variant: Variant,
    knob: str | None,
    knobs: Axes,
    config: Mapping[str, Any],
    score: str,
    drift: str,
) -> Curve:
    points = []
    for value in [None] if knob is None else sorted(knobs[knob]):
        axes = {} if knob is None else {knob: value}
        seeds = {
            row.seed: (row.scores[drift], row.scores[score])
            for row in rows
            if row.variant == variant.name and row.axes == axes and drift in row.scores and score in row.scores
        }
        finite = {seed: pair for seed, pair in seeds.items() if all(map(math.isfinite, pair))}
        drifts, scores = (Estimate.of([pair[at] for pair in finite.values()]) for at in (0, 1))
        if drifts is not None and scores is not None:
            points.append(FrontierPoint(value, drifts, scores, finite))
    several = len(_keys(variant, knobs, config)) > 1
    return Curve(f"{variant.name}, {knob}" if several else variant.name, variant.name, knob, points)


def _baseline_score(rows: Sequence[Row], baseline: str | None, score: str) -> list[float]:
    """Return the mean score of the baseline as it was trained: at scale 1, or without any knob."""
    plain = [row for row in rows if row.variant == baseline and row.axes in ({}, {SCALE: 1})]
    estimate = Estimate.of([row.scores[score] for row in plain if score in row.scores])
    return [] if estimate is None else [estimate.mean]


def _shared_middle(
    curves: Sequence[Curve], of: Callable[[FrontierPoint], float], *, logarithmic: bool = False
) -> list[float]:
    """Return the middle of the range that all curves share; nothing if there is none or there are fewer than two curves."""
    if len(curves) < 2:
        return []
    low = max(min(of(point) for point in curve.points) for curve in curves)
    high = min(max(of(point) for point in curve.points) for curve in curves)
    if low > high:
        return []
    return [math.sqrt(low * high) if logarithmic and low > 0 else (low + high) / 2]


def _read(curve: Curve, kind: str, level: float, lower_is_better: bool) -> Reading:
    """Read a curve at a level: for each seed on its own curve, then the mean over seeds."""
    if len(curve.points) < 2:
        return Reading(curve.name, kind, level, None, "one point")
    seeds = sorted(set.intersection(*(set(point.seeds) for point in curve.points)))
    if not seeds:
        return Reading(curve.name, kind, level, None, "no seed has every point")
    found = []
    for seed in seeds:
        pairs = [point.seeds[seed] for point in curve.points]
        if kind == "score":
            values = crossings(pairs, level, logarithmic=True)
            found.append((min if lower_is_better else max)(values) if values else None)
        else:
            positive = all(drift > 0 for drift, _ in pairs)
            values = crossings([(s, math.log(d) if positive else d) for d, s in pairs], level)
            found.append((math.exp(min(values)) if positive else min(values)) if values else None)
    inside = [value for value in found if value is not None]
    estimate = Estimate.of(inside)
    at = "drift" if kind == "score" else "score"
    low, high = _range(curve, at)
    if estimate is None:
        return Reading(curve.name, kind, level, None, f"its {at} goes from {low:.4g} to {high:.4g}")
    missing = "" if len(inside) == len(found) else f"{len(inside)} of {len(found)} seeds reach it"
    return Reading(curve.name, kind, level, estimate, missing)


def _range(curve: Curve, at: str) -> tuple[float, float]:
    values = [getattr(point, at).mean for point in curve.points]
    return min(values), max(values)


def crossings(pairs: Sequence[tuple[float, float]], level: float, *, logarithmic: bool = False) -> list[float]:
    """Return y wherever a line through points (x, y), in their order, has x at a level.

    Between two points the line is straight; with ``logarithmic``, over the logarithm of x where both are above 0.

    Example:
        >>> crossings([(0.0, 1.0), (2.0, 3.0), (0.0, 5.0)], 1.0), crossings([(0.0, 1.0), (2.0, 3.0)], 4.0)
        ([2.0, 4.0], [])
        >>> round(crossings([(0.01, 0.0), (1.0, 1.0)], 0.1, logarithmic=True)[0], 6)
        0.5
    """
    found: list[float] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(pairs):
        if not min(x0, x1) <= level <= max(x0, x1):
            continue
        if x0 == x1:
            found += [y0, y1]
            continue
        scale: Callable[[float], float] = math.log if logarithmic and min(x0, x1) > 0 else float
        part = (scale(level) - scale(x0)) / (scale(x1) - scale(x0))
        found.append(y0 + part * (y1 - y0))
    return list(dict.fromkeys(found))

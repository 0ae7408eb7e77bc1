"""Warnings that a reader needs before trusting the numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from balora.experiments.compare.plan import configuration_label
from balora.experiments.compare.rows import Row, differing_provenance
from balora.plots.style import TERMS
from balora.report.sections import Run, Section
from balora.report.tables import list_some

_CONSTANT = 1e-5
"""Relative range below which a term counts as constant; logged means have a rounding error of about 1e-7."""


def find_warnings(section: Section) -> list[str]:
    """List the warnings about a section. A sentence that is true of several runs appears once, with their names."""
    found: dict[str, list[str]] = {}
    for run in section.runs:
        for sentence in _run_warnings(run):
            found.setdefault(sentence, []).append(run.name)
    with_directory = {run.name for run in section.runs}
    for row in section.rows:
        if row.status != "finished" and row.run not in with_directory:
            found.setdefault(f"The run has no result: {row.reason}", []).append(row.run)
    total = len(section.rows)
    warnings = []
    for sentence, names in found.items():
        who = "All runs" if len(names) == total else list_some(names, 4, ", ")
        warnings.append(sentence if total == 1 else f"{who}: {sentence}")
    return [*warnings, *_section_warnings(section)]


def _run_warnings(run: Run) -> Iterator[str]:
    status = run.record.get("status")
    if status == "failed" or run.row.status == "failed":
        yield f"The run failed: {run.row.reason}"
    elif status == "interrupted":
        yield "The run is not finished: it was stopped. The same command resumes it."
    elif status == "running":
        yield "The run is not finished: it is still running, or it was stopped. The same command resumes it."
    elif status != "finished":
        yield "The run has no final status in run.json."
    if run.record.get("resumed"):
        yield "The run was interrupted and resumed, so its training time is not known."
    evaluated = run.evaluations or any(key.startswith("eval_") for key in run.record.get("metrics") or {})
    if status == "finished" and not evaluated:
        yield "There is no evaluation: the config has no data.eval, and `balora evaluate` was not run."
    yield from _non_finite_values(run)
    yield from run.record.get("notices") or []
    for term in TERMS:
        yield from _ineffective_term(run, term)
    for name, value in run.row.scores.items():
        if math.isnan(value):
            yield f"{name} is not a number: either all predictions are equal, or the loss became NaN."
        elif name == "matthews" and value == 0:
            yield "Matthews' correlation is exactly 0: the model very likely predicts a single class."
    commit = (run.row.provenance or {}).get("commit")
    if commit is None:
        yield "The code's commit is not known, because balora did not run from a git checkout."
    elif commit.get("dirty"):
        yield f"The code had uncommitted changes (on top of {commit['id'][:12]})."


def _non_finite_values(run: Run) -> Iterator[str]:
    """Name each logged value that is NaN or infinite, with the first such step."""
    for key in dict.fromkeys(key for line in run.lines for key, value in line.items() if isinstance(value, float)):
        values = [(line["step"], line[key]) for line in run.lines if isinstance(line.get(key), float)]
        bad = [step for step, value in values if not math.isfinite(value)]
        if bad:
            lasts = len(values) > 1 and not math.isfinite(values[-1][1])
            yield f"{key} is not finite from step {bad[0]} on." if lasts else f"{key} is not finite at step {bad[0]}."


def _ineffective_term(run: Run, term: str) -> Iterator[str]:
    """Report a regularizer that has a weight but no effect, unless a notice of the run reports it already."""
    if any(notice.startswith(f"The {term} term") for notice in run.record.get("notices") or []):
        return
    weight = run.weights[term]
    values = [line[term] for line in run.lines if isinstance(line.get(term), float) and math.isfinite(line[term])]
    scheduled = [line[f"{term}_weight"] for line in run.lines if f"{term}_weight" in line]
    if weight > 0 and scheduled and not values:
        reason = _constant_by_design(run, term) if "notices" not in run.record else None
        if reason is not None:
            yield f"The {term} term has weight {weight:g} but was switched off: {reason}"
        elif not any(scheduled):
            yield f"The {term} term has weight {weight:g} but did nothing: its scheduled weight was 0 at every logged step."
    if len(values) >= 3 and max(values) - min(values) <= _CONSTANT * max(map(abs, values)):
        yield f"The {term} term did nothing: it was constant at {values[-1]:.4g}, so its gradient was 0."


def _constant_by_design(run: Run, term: str) -> str | None:
    """Explain why the objective switched a term off; None if it did not. Only runs without notices in `run.json` need this."""
    section: dict[str, Any] = run.config.get("regularization") or {}
    labels = (run.record.get("data") or {}).get("labels")
    outputs = len(labels) if labels else 1 if run.task == "regression" else None
    if outputs is None or section.get(f"{term}_target", "logits") != "logits":
        return None
    rank = int(section.get("spectral_rank", 0))
    if term == "spectral" and rank >= outputs:
        return f"it is always 1 (eq. 7) with {outputs} output{'s' if outputs > 1 else ''} and spectral_rank {rank}."
    if term == "diversity" and outputs == 1:
        return "one output has no off-diagonal covariance."
    return None


def _section_warnings(section: Section) -> list[str]:
    finished = [row for row in section.rows if row.status == "finished"]
    warnings = []
    seeds: dict[str, set[int]] = {}
    for row in finished:
        seeds.setdefault(configuration_label(row.variant, row.axes), set()).add(row.seed)
    single = [label for label, found in seeds.items() if len(found) == 1]
    if single and len(single) == len(seeds):
        warnings.append("One seed only: the numbers do not show how much they vary from seed to seed.")
    elif single:
        warnings.append(f"One seed only for {list_some(single, 4, ', ')}.")
    if section.comparison is not None:
        warnings += section.comparison.get("notes") or []
    else:
        differing = differing_provenance(finished)
        warnings += [f"The runs differ in their {name}: see where the numbers come from." for name in differing]
    return warnings + _data_warnings(finished, paired=section.comparison is not None)


def _data_warnings(finished: Sequence[Row], paired: bool) -> list[str]:
    """Warn if runs with different training data are compared. A comparison pairs runs by seed: data may differ between seeds."""
    digests: dict[tuple[int, str], set[str | None]] = {}
    for row in finished:
        digests.setdefault((row.seed, repr(row.axes)), set()).add(row.provenance.get("data_digest"))
    if any(len(found) > 1 for found in digests.values()):
        return ["Do not compare all scores directly: some runs with the same seed had different training data."]
    if not paired and len(set().union(*digests.values())) > 1:
        return ["Compare only runs with the same seed: runs with different seeds had different training data."]
    return []

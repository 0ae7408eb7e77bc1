"""What a reader has to know before believing the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from balora.experiments.compare.rows import Row, mixed_origins
from balora.report.source import TERMS, Run, Section, label_of, weights

_FLAT = 1e-5
"""A term whose values differ by less than this share of their size did not move: logged means round at about 1e-7."""


def warnings_of(section: Section) -> list[str]:
    """Everything doubtful about a section's runs, the same sentence once for all runs it is true of."""
    found: dict[str, list[str]] = {}
    for run in section.runs:
        for sentence in _of_run(run):
            found.setdefault(sentence, []).append(run.name)
    own = {run.name for run in section.runs}
    for row in section.rows:
        if row.status != "finished" and row.run not in own:
            found.setdefault(f"The run has no result: {row.reason}", []).append(row.run)
    whole = len(section.rows)
    sentences = [
        text if whole == 1 else f"{'All runs' if len(names) == whole else _names(names)}: {text}"
        for text, names in found.items()
    ]
    return [*sentences, *_of_all(section)]


def _of_run(run: Run) -> Iterator[str]:
    status = run.record.get("status")
    if status == "failed" or run.row.status == "failed":
        yield f"The run failed: {run.row.reason}"
    elif status == "running":
        yield "The run is not finished: it is under way, or was stopped. The same command resumes it."
    elif status != "finished":
        yield "The run has no record of how it ended (run.json)."
    if run.record.get("resumed"):
        yield "The run was interrupted and resumed, so it has no time of its own."
    if status == "finished" and not run.evaluations and not _evaluated(run):
        yield "There is no evaluation: no data.eval in the config, and no `balora evaluate` afterwards."
    yield from _not_finite(run)
    yield from run.record.get("notices") or []
    for term in TERMS:
        yield from _of_term(run, term)
    yield from _degenerate(run)
    commit = (run.row.provenance or {}).get("commit")
    if commit is None:
        yield "The code's commit is not known (balora did not run from a checkout)."
    elif commit.get("dirty"):
        yield f"The code had changes that are in no commit (on top of {commit['id'][:12]})."


def _evaluated(run: Run) -> bool:
    return any(key.startswith("eval_") for key in run.record.get("metrics") or {})


def _not_finite(run: Run) -> Iterator[str]:
    """Each logged value that is NaN or infinite, with the step where it first was."""
    first: dict[str, int] = {}
    for line in run.lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                first.setdefault(key, line["step"])
    for key, step in first.items():
        yield (
            f"{key} is not finite from step {step} on." if _stays(run, key) else f"{key} is not finite at step {step}."
        )


def _stays(run: Run, key: str) -> bool:
    values = [line[key] for line in run.lines if isinstance(line.get(key), float)]
    return len(values) > 1 and not math.isfinite(values[-1])


def _of_term(run: Run, term: str) -> Iterator[str]:
    """A term that was asked for and did nothing."""
    asked = weights(run.config)[term]
    values = [line[term] for line in run.lines if isinstance(line.get(term), float) and math.isfinite(line[term])]
    logged = [line[f"{term}_weight"] for line in run.lines if f"{term}_weight" in line]
    if any(notice.startswith(f"The {term} term") for notice in run.record.get("notices") or []):
        return  # the run itself said why, and that is on the page
    if asked > 0 and logged and not values:
        why = _constant(run, term) if "notices" not in run.record else None
        if why is not None:
            yield f"The {term} term was asked for (weight {asked:g}) and switched off: {why}"
        elif not any(logged):
            yield (
                f"The {term} term was asked for (weight {asked:g}), but its scheduled weight was 0 at every logged step, so it "
                "did nothing."
            )
    if len(values) >= 3 and max(values) - min(values) <= _FLAT * max(map(abs, values)):
        yield f"The {term} term was constant at {values[-1]:.4g}: its gradient was 0, so it changed nothing."


def _constant(run: Run, term: str) -> str | None:
    """Why the objective switched a term off, None where it did not: for runs of before `run.json` kept its notices."""
    section: dict[str, Any] = run.config.get("regularization") or {}
    labels = (run.record.get("data") or {}).get("labels")
    outputs = len(labels) if labels else 1 if run.task == "regression" else None
    if outputs is None or section.get(f"{term}_target", "logits") != "logits":
        return None
    if term == "spectral" and int(section.get("spectral_rank", 0)) >= outputs:
        width = f"{outputs} output{'s' if outputs > 1 else ''}"
        return f"it is constant with {width} and spectral_rank {section['spectral_rank']} (eq. 7 is 1 whatever the model does)."
    if term == "diversity" and outputs == 1:
        return "one output has no off-diagonal covariance."
    return None


def _degenerate(run: Run) -> Iterator[str]:
    """Scores that a model gets that says the same to everything."""
    for name, value in run.row.scores.items():
        if math.isnan(value):
            yield f"{name} is not a number: the model gives the same answer to every row, or the loss was lost."
        elif name == "matthews" and value == 0:
            yield "Matthews' correlation is exactly 0: the model very likely predicts one class."


def _of_all(section: Section) -> list[str]:
    """About the runs together."""
    done = [row for row in section.rows if row.status == "finished"]
    notes = []
    seeds: dict[str, set[int]] = {}
    for row in done:
        seeds.setdefault(label_of(row), set()).add(row.seed)
    if seeds and all(len(found) == 1 for found in seeds.values()):
        notes.append("One seed only: nothing here says how much the numbers vary from seed to seed.")
    elif any(len(found) == 1 for found in seeds.values()):
        single = [label for label, found in seeds.items() if len(found) == 1]
        notes.append(f"One seed only for {_names(single)}.")
    if section.comparison is not None:
        notes += section.comparison.get("notes") or []
    else:
        notes += [
            f"Not all runs were made with the same {what}; see where the numbers come from."
            for what in mixed_origins(done)
        ]
    return notes + _different_data(done, paired=section.comparison is not None)


def _different_data(done: Sequence[Row], paired: bool) -> list[str]:
    """Whether runs are compared that learnt from different rows; a comparison's differences are within a seed anyway."""
    data: dict[tuple[int, str], set[str | None]] = {}
    for row in done:
        data.setdefault((row.seed, repr(row.axes)), set()).add(row.provenance.get("data_digest"))
    if any(len(digests) > 1 for digests in data.values()):
        return ["Not all runs of one seed saw the same data, so their scores do not compare as they stand."]
    if not paired and len(set().union(*data.values())) > 1:
        return ["Runs of different seeds saw different rows; compare those of one seed."]
    return []


def _names(names: Sequence[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")

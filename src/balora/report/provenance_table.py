"""What was run, in a few words, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from balora.report.results import Table
from balora.report.source import Run, Section, weights

_SHARED = ("commit", "data digest", "machine", "versions")


def summary_of(section: Section) -> list[tuple[str, str]]:
    """Model, data, methods and weights of a section, for the head of the page."""
    runs = section.runs
    facts = [
        ("model", _each(str(run.config.get("model", "-")) for run in runs)),
        ("task", _each(run.task for run in runs)),
        ("training data", _each(_data(run.config) for run in runs)),
        ("evaluation data", _each(str((run.config.get("data") or {}).get("eval") or "none") for run in runs)),
        ("method", _each(_method(run) for run in runs)),
        ("regularization", _each(_regularization(run) for run in runs)),
        ("seeds", _each(str(row.seed) for row in section.rows)),
    ]
    return [(name, text) for name, text in facts if text]


def origins_of(runs: Sequence[Run]) -> tuple[Table, list[tuple[str, str]]]:
    """Each run's time, code, data, machine and versions; what all share is said once."""
    lines = [_origin(run) for run in runs]
    shared = {key: lines[0][key] for key in _SHARED if lines and len({line[key] for line in lines}) == 1}
    header = [key for key in (lines[0] if lines else {}) if key not in shared]
    cells = [[line[key] for key in header] for line in lines]
    return Table(title="Runs", header=header, lines=cells), list(shared.items())


def _origin(run: Run) -> dict[str, str]:
    made: Mapping[str, Any] = run.row.provenance or {}
    commit, hardware = made.get("commit"), made.get("hardware") or {}
    return {
        "run": run.name,
        "status": run.row.status,
        "seed": str(run.row.seed),
        "time": str(made.get("time") or "-"),
        "commit": f"{commit['id'][:12]}{' with changes' if commit.get('dirty') else ''}" if commit else "-",
        "data digest": str(made.get("data_digest") or "-")[:12],
        "machine": f"{hardware.get('device', '-')}, {hardware.get('cores', '-')} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items() if version),
    }


def _method(run: Run) -> str:
    method = run.config.get("method") or {}
    return f"{method.get('name', 'unknown')} (rank {method.get('rank', '-')}, alpha {method.get('alpha', '-')})"


def _regularization(run: Run) -> str:
    section = run.config.get("regularization") or {}
    active = [f"{term} {weight:g}" for term, weight in weights(run.config).items() if weight > 0]
    targets = [
        f"{key.removesuffix('_target')} on {section[key]}"
        for key in ("diversity_target", "spectral_target")
        if section.get(key, "logits") != "logits"
    ]
    return ", ".join([*active, *targets]) if active else "none"


def _data(config: Mapping[str, Any]) -> str:
    data = config.get("data") or {}
    return " ".join(str(data[key]) for key in ("train", "split") if data.get(key)) or "-"


def _each(texts: Iterable[str], most: int = 8) -> str:
    """Different texts once each."""
    different = list(dict.fromkeys(texts))
    return "; ".join(different[:most]) + (f" and {len(different) - most} more" if len(different) > most else "")

"""`balora.audit`: measure what fine-tuning changed, write JSON, Markdown and a page, and check bounds."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.auditing.bounds import broken_bounds
from balora.auditing.drift import Drift
from balora.auditing.measure import Found
from balora.auditing.model_pair import ModelPair
from balora.auditing.options import AuditOptions
from balora.auditing.page import PAGE, audit_page, markdown
from balora.auditing.parts import plan_parts
from balora.auditing.samples import Samples
from balora.auditing.tasks import evaluate_pair
from balora.auditing.verdicts import answers
from balora.checkpoints.lock import locked
from balora.checkpoints.model_card import with_audit
from balora.checkpoints.provenance import file_digest, provenance
from balora.config.run_config import RunConfig
from balora.data.files.hub import looks_local
from balora.data.files.readers import SUFFIXES
from balora.errors import BALoraError, suggest_path
from balora.evaluation.model_under_test import LoadedModel
from balora.evaluation.results import json_safe
from balora.files import read_json, write_text
from balora.loading.trained import SavedModel

RESULT, SUMMARY = "audit.json", "audit.md"
_NEUTRAL = ("fail_if", "device")
"""Options that change no number."""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Audit:
    """A finished audit."""

    folder: Path
    """Folder with ``audit.json``, ``audit.md`` and ``audit.html``."""
    result: dict[str, Any]
    """Content of ``audit.json``."""
    broken: list[str]
    """One line for each bound of ``fail_if`` that is broken."""

    @property
    def measures(self) -> dict[str, Any]:
        """Measures by name, each with ``value``, or with ``base``, ``tuned`` and ``change``."""
        measures: dict[str, Any] = self.result["measures"]
        return measures

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict of each question: unchanged, changed, doubtful or not measured."""
        return {name: answer["verdict"] for name, answer in self.result["answers"].items()}


def audit(
    tuned: str | Path,
    *,
    base: str | Path | None = None,
    against: str | Path | None = None,
    output: str | Path | None = None,
    options: AuditOptions | None = None,
    say: Say = lambda line: None,
    asked: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Audit:
    """Measure what fine-tuning changed in a model.

    Parts that the output folder has already, for the same models and settings, are not measured again.

    Args:
        tuned: A run directory, a peft adapter, or a model directory or hub id.
        base: Its base; default the model that the run or the adapter names.
        against: Another tuned model of the same base, audited the same way and shown beside it.
        output: Folder to write. Default: ``audit/`` in the run directory, or ``audit/NAME``.
        options: All other settings.
        say: Function that receives progress messages.
        asked: Section ``audit`` of the config that asked for this audit, kept in the result.
        **settings: Fields of `AuditOptions`, in place of ``options``.

    Returns:
        The measures, the answers, and the bounds that are broken.

    Raises:
        BALoraError: A model, a file or a setting cannot be used, or a bound names what was not measured.

    Example:
        >>> found = balora.audit("runs/mine", text="general.jsonl")  # doctest: +SKIP
        >>> found.measures["drift"]["value"]  # doctest: +SKIP
        {'value': 0.014, 'low': 0.012, 'high': 0.017}
    """
    if options is not None and settings:
        raise BALoraError("Give the settings either as options or one by one, not both.")
    options = options or AuditOptions.from_mapping(settings)
    for path, flag in ((options.text, "--text"), (options.data, "--data")):
        if path is not None and looks_local(path, SUFFIXES) and not Path(path).expanduser().exists():
            raise BALoraError(f"There is no file or folder {path} ({flag}).{suggest_path(Path(path).expanduser())}")
    pair = ModelPair(str(tuned), None if base is None else str(base), options)
    if options.tasks and base is not None and (pair.saved is not None or pair.tuned.adapter is not None):
        raise BALoraError(
            f"tasks load {tuned} with the base that it names itself, and base names another place ({base}). Leave out base, or "
            "audit a merged copy (`balora export --to merged`)."
        )
    folder = Path(output) if output is not None else _default_folder(pair)
    with locked(folder, "Another audit writes"):
        result = _measure(pair, options, folder, say)
        if against is not None:
            say(f"Auditing {against} for comparison")
            other = audit(
                against,
                base=base,
                output=folder / "against",
                options=dataclasses.replace(options, fail_if=None),
                say=say,
            )
            keys = ("tuned", "base", "measures", "answers")
            result["against"] = {key: other.result[key] for key in keys}
        if asked is not None:
            result["asked"] = dict(asked)
        write_text(folder / RESULT, json.dumps(json_safe(result), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / SUMMARY, markdown(result))
        audit_page(folder / PAGE, result)
        if pair.saved is not None and folder == _default_folder(pair):
            _add_to_card(pair.saved, result)
    return Audit(folder, result, broken_bounds(options.bounds, result["measures"]))


def audit_run(config: RunConfig, say: Say = lambda line: None) -> Audit | None:
    """Audit a finished run as the section ``audit`` of its config says; return None if there is no such section."""
    if config.audit is None:
        return None
    return audit(config.output, options=AuditOptions.from_mapping(config.audit), say=say, asked=config.audit)


def read_measures(run: Path) -> dict[str, float]:
    """Return the numbers of a run's audit by ``audit/NAME``, for comparisons; nothing if it was not audited.

    It is the value that compares the models, or the tuned model's where there is one for each.
    """
    path = run / "audit" / RESULT
    measures = read_json(path, "Delete it, and audit again.")["measures"] if path.is_file() else {}
    sides = {name: measure.get("value") or measure.get("tuned") or {} for name, measure in measures.items()}
    return {
        f"audit/{name}": math.nan if side.get("value") is None else float(side["value"]) for name, side in sides.items()
    }


def _default_folder(pair: ModelPair) -> Path:
    found = pair.tuned.folder
    parts = ["audit" if part == "evaluation" else part for part in found.parts]
    return Path(*parts)


def _add_to_card(saved: SavedModel, result: Mapping[str, Any]) -> None:
    """Write the answers into the model card of a run, if it has one; a checkpoint has none of its own."""
    card = None if saved.run is None or saved.folder.name.startswith("checkpoint-") else saved.run / "README.md"
    if card is not None and card.is_file():
        write_text(card, with_audit(card.read_text(encoding="utf-8"), result))


def _measure(pair: ModelPair, options: AuditOptions, folder: Path, say: Say) -> dict[str, Any]:
    """Measure every part that the folder lacks, and return the result."""
    identity = _identity(pair, options)
    kept = folder / "parts"
    kept.mkdir(exist_ok=True)
    plan_file = kept / "plan.json"
    plan = _kept(plan_file, identity)
    if plan is None or any(_kept(kept / f"{name}.json", identity) is None for name in plan["parts"]):
        plan = _run(pair, options, folder, identity, say)
        write_text(plan_file, json.dumps(plan))
    else:
        say("All parts were measured before.")
    found = [_kept(kept / f"{name}.json", identity) or {} for name in plan["parts"]]
    if options.tasks:
        pair.close()
        found.append(evaluate_pair(pair.base_name, pair.tuned.name, options, folder / "tasks", say).to_dict())
    merged: dict[str, Any] = {
        "measures": {},
        "evidence": {},
        "notes": list(plan["notes"]),
        "not_measured": dict(plan["not_measured"]),
    }
    for part in found:
        for key in ("measures", "evidence", "not_measured"):
            merged[key] |= part[key]
        merged["notes"] += part["notes"]
    return {
        "tuned": pair.tuned.name,
        "base": pair.base_name,
        "about": pair.describe(),
        "task": plan["task"],
        "one_set_of_weights": plan["shared"],
        "answers": {answer.question: answer.to_dict() for answer in answers(merged["measures"])},
        **merged,
        "options": {key: value for key, value in dataclasses.asdict(options).items() if value not in (None, (), {})},
        "identity": identity,
        "provenance": provenance(),
    }


def _run(pair: ModelPair, options: AuditOptions, folder: Path, identity: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run the parts that are missing: the base first, then the tuned model. Return the plan."""
    kept, work = folder / "parts", folder / "work"
    with pair.side("base") as loaded:
        plan = plan_parts(pair, loaded, options, work)
        pending = [part for part in plan.parts if _kept(kept / f"{part.name}.json", identity) is None]
        samples = next((part for part in plan.parts if isinstance(part, Samples)), None)
        if samples is not None and pending and samples not in pending and not samples.exist():
            pending.insert(0, samples)  # measured before, but its sequences are needed again
        about = {"task": loaded.task, "vocabulary": loaded.tokenizer.get_vocab()}
        # Two states of one set of weights take turns at each batch, which saves the base's outputs on disk and half of the heads.
        together = [part for part in pending if pair.shared and isinstance(part, Drift)]
        for part in pending:
            if part not in together:
                _timed(f"{part.name}, base", functools.partial(part.run_base, loaded), say)
    del loaded
    for drift in together:
        _timed(f"{drift.name}, both", functools.partial(drift.run_both, pair), say)
    with pair.side("tuned") as loaded:
        if loaded.task != about["task"]:
            raise BALoraError(
                f"The base is a model for {about['task']}, and the tuned model one for {loaded.task}, so they cannot be compared. "
                "Give the base that was fine-tuned (--base)."
            )
        _check_vocabulary(about["vocabulary"], loaded)
        for part in pending:
            if part not in together:
                _timed(f"{part.name}, tuned", functools.partial(part.run_tuned, loaded), say)
            found: Found = part.result()
            values = json_safe({"identity": identity, **found.to_dict()})
            write_text(kept / f"{part.name}.json", json.dumps(values, ensure_ascii=False))
    del loaded
    pair.close()
    shutil.rmtree(work, ignore_errors=True)
    return {
        "identity": identity,
        "parts": [part.name for part in plan.parts],
        "not_measured": plan.not_measured,
        "notes": pair.notes,
        "task": about["task"],
        "shared": pair.shared,
    }


def _timed(name: str, run: Callable[[], None], say: Say) -> None:
    begun = time.monotonic()
    run()
    say(f"{name}: {time.monotonic() - begun:.1f} s")


def _check_vocabulary(vocabulary: Mapping[str, int], loaded: LoadedModel) -> None:
    """Refuse a tuned model whose tokenizer gives the base's tokens other numbers; further tokens are no harm."""
    own = loaded.tokenizer.get_vocab()
    wrong = next((token for token, number in vocabulary.items() if own.get(token, number) != number), None)
    if wrong is not None:
        raise BALoraError(
            f"The tokenizers of base and tuned model give the token {wrong!r} different numbers, so their predictions cannot be "
            "compared. Give the base that was fine-tuned (--base)."
        )


def _identity(pair: ModelPair, options: AuditOptions) -> dict[str, Any]:
    """Return everything that decides the numbers."""
    settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NEUTRAL}
    for name in ("tasks", "task_data", "task_limit"):  # evaluations have journals of their own
        settings.pop(name)
    files = {}
    for name in ("text", "data"):
        path = Path(settings[name]).expanduser() if settings[name] else None
        if path is not None and path.is_file():
            files[name] = file_digest(path)
    return json.loads(json.dumps({**pair.identity(), "options": settings, "files": files}, default=list))  # type: ignore[no-any-return]


def _kept(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a file keeps, if it was made for the same models and settings."""
    if not path.is_file():
        return None
    try:
        values = read_json(path)
    except BALoraError:
        return None
    return values if values.get("identity") == identity else None

"""Tasks of EleutherAI's lm-evaluation-harness by name, on the model in memory.

The harness reads the data, makes the requests and scores them; the model and its answers are ours, so that an interrupted
evaluation goes on and repeats nothing. It is an extra: ``pip install 'balora[lm-eval]'``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from balora.data.hub import looks_local, unreachable
from balora.data.readers import SUFFIXES
from balora.errors import BALoraError
from balora.evaluation.context import Session
from balora.evaluation.prompting import CHAT
from balora.evaluation.results import Record

PREFIX = "lm_eval:"
"""Before a name that balora has a task for as well, and before the path of a task's own YAML file."""
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}


def installed() -> bool:
    """Whether the harness is there."""
    return importlib.util.find_spec("lm_eval") is not None


def names() -> list[str]:
    """Every task, group and tag of the harness, none where it is not installed."""
    return list(_manager().all_tasks) if installed() else []


def is_file(name: str) -> bool:
    """Whether a name is the path of a task's YAML file."""
    return name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file()


def evaluate_harness(session: Session, name: str) -> Record:
    """Run one task (or group) of the harness.

    Args:
        session: The evaluation.
        name: The harness's name for it, or a YAML file.

    Returns:
        The result; its samples are the harness's, with document, answer and scores.

    Raises:
        BALoraError: The data cannot be read, or the model is not one the harness can ask.
    """
    from balora.evaluation.tasks.lm_eval_model import JournaledModel

    if session.subject.is_reference:
        raise BALoraError(f"{name} is a task of lm-evaluation-harness, which has no reference answers to be scored.")
    if session.options.engine != "transformers":
        raise BALoraError(
            f"{name} is a task of lm-evaluation-harness; here it goes through transformers. Leave --engine out."
        )
    if session.loaded.task not in ("generation", "seq2seq"):
        raise BALoraError(f"{name} needs a language model, and {session.subject.name} is a classifier.")
    chat = session.prompting("none").template == CHAT
    title = f"lm_eval.{Path(name).stem if is_file(name) else name}"
    settings = {"few_shot": session.options.few_shot, "chat": chat}
    journal = session.journal_of(title, harness={"name": name, "version": _version(), **settings})
    data = session.options.data
    with _quiet(), _spec(name, data.get(PREFIX + name, data.get(name))) as spec:
        model = JournaledModel(session.loaded, session.options.batch_size, journal, session.say)
        output = _run(session, name, spec, model, chat)
    results, samples = output["results"], output.get("samples", {})
    own = next(iter(results)) if len(results) == 1 else Path(name).stem
    scores = _scores(results.get(own, {}))  # a tag of tasks has no score of its own, and no task's is put in its place
    subtasks = {task: _scores(found) for task, found in results.items() if task != own}
    records = [{"id": f"{task}/{row['doc_id']}", **_sample(row)} for task, rows in samples.items() for row in rows]
    rows = {"rows": len({(task, row["doc_id"]) for task, found in samples.items() for row in found})}
    about = {"configs": _plain(output.get("configs", {})), "versions": output.get("versions", {})}
    return journal.finish([], {**scores, **rows, **({"by_task": subtasks} if subtasks else {})}, about, records)


def _run(session: Session, name: str, spec: Any, model: Any, chat: bool) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    try:
        output = simple_evaluate(
            model=model,
            tasks=[spec],
            num_fewshot=session.options.few_shot,
            limit=session.options.limit,
            apply_chat_template=chat,
            task_manager=_manager(),
            random_seed=session.options.seed,
            numpy_random_seed=session.options.seed,
            torch_random_seed=session.options.seed,
        )
    except BALoraError:
        raise
    except Exception as error:  # tasks are data and code of many authors; to the user one sentence is enough
        if unreachable(error) or type(error).__name__ in ("DatasetNotFoundError", "LocalEntryNotFoundError"):
            raise BALoraError(
                f"The data of {name} could not be reached; check the connection, or give local files (--data TASK=PLACE)."
            ) from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BALoraError(f"lm-evaluation-harness could not run {name}: {reason.rstrip('.')}.") from error
    assert output is not None, "one process always gets the results"
    return dict(output)


@contextlib.contextmanager
def _spec(name: str, place: str | None) -> Iterator[str]:
    """What the harness is asked for: the name, or the task as it is with other data, written as its own YAML has it."""
    base = str(Path(name).expanduser().resolve()) if is_file(name) else None
    if place is None:
        yield base or name
        return
    if base is None:
        entry = _manager().task_index[name]
        if entry.yaml_path is None or not str(entry.kind).endswith("TASK"):
            raise BALoraError(f"{name} is a group of tasks; local data can be given for a single one.")
        base = str(entry.yaml_path)
    with tempfile.TemporaryDirectory(prefix="balora-task-") as folder:
        path = Path(folder) / f"{Path(name).stem}.yaml"
        path.write_text(yaml.safe_dump({"include": base, "task": Path(name).stem, **_local_data(place)}))
        yield str(path)


def _local_data(place: str) -> dict[str, Any]:
    """A task's data settings for a local file, or a folder with one file per split."""
    path = Path(place).expanduser().resolve()
    if not looks_local(place, SUFFIXES) or not path.exists():
        raise BALoraError(f"There is no file or folder {place} for a task of lm-evaluation-harness (--data).")
    files = {"test": path}
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _BUILDERS]
        files = {_ALIASES.get(file.stem, file.stem): file for file in found}
    kinds = {_BUILDERS.get(file.suffix.lower()) for file in files.values()}
    if len(kinds) != 1 or None in kinds or not set(files) & set(_SPLITS):
        raise BALoraError(
            f"{place} must be one file, or hold train, validation and test files, of one kind: {', '.join(_BUILDERS)}."
        )
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        **{key: split if split in files else None for split, key in _SPLITS.items()},
        "fewshot_split": next((split for split in ("train", "validation") if split in files), None),
    }


@functools.cache
def _manager() -> Any:
    """The harness's list of tasks, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _version() -> str:
    import lm_eval

    return str(getattr(lm_eval, "__version__", "unknown"))


def _scores(found: dict[str, Any]) -> Record:
    """The harness's ``acc,none`` and ``acc_stderr,none`` as ``acc`` and ``acc_stderr``; the first metric is the main one."""
    scores: Record = {}
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        name = metric if filtered in ("none", "") else f"{metric} ({filtered})"
        if isinstance(value, int | float) and not isinstance(value, bool) and metric != "sample_len":
            scores[name] = float(value)
    main = next((name for name in scores if "_stderr" not in name), None)
    if main is None:
        return {"main": "score", "score": None}
    return {"main": main, **scores}


def _sample(row: Record) -> Record:
    kept = {key: value for key, value in row.items() if key not in ("doc_id", "doc_hash", "prompt_hash", "target_hash")}
    return dict(_plain(kept))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str, ensure_ascii=False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own reports and bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["PREFIX", "evaluate_harness", "installed", "is_file", "names"]

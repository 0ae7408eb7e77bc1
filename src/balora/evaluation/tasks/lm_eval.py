"""Tasks of EleutherAI's lm-evaluation-harness by name, on the loaded model.

The library reads the data, makes the requests and scores the answers. balora runs the model and journals the answers, so
that an interrupted evaluation continues. The library is an extra (``pip install 'balora[lm-eval]'``); the registry imports
this module only if it is installed.
"""

import collections
import contextlib
import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate as evaluate_metrics
import lm_eval
import lm_eval.utils
import torch
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from balora.data.files.hub import looks_local, unreachable
from balora.data.files.readers import SUFFIXES
from balora.errors import BALoraError
from balora.evaluation.context import own_share
from balora.evaluation.engines.transformers import sample_seed
from balora.evaluation.lm_eval_index import is_yaml_file
from balora.evaluation.model_under_test import LoadedModel
from balora.evaluation.options import InvalidOption
from balora.evaluation.progress import progress
from balora.evaluation.prompting import CHAT
from balora.evaluation.registry import LM_EVAL_PREFIX
from balora.evaluation.results import Journal, Record, count_answers
from balora.evaluation.tasks.task import Task
from balora.turns import division, from_first

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_SPLIT_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
_BLOCK = 32
"""Batches between two writes of the journal."""
_BOOKKEEPING = ("doc_id", "doc_hash", "prompt_hash", "target_hash")


class LMEvalTask(Task):
    """Task or group of lm-evaluation-harness, by its name there or by the path of its YAML file."""

    def evaluate(self) -> Record:
        """Let lm-evaluation-harness run the task, and save its samples with answer and scores. See `Task.evaluate`."""
        context, name = self.context, self.name
        library = f"{name} is a task of lm-evaluation-harness"
        if context.model_under_test.is_reference:
            raise BALoraError(f"{library}, which has no reference answers to score.")
        if context.options.engine != "transformers":
            raise BALoraError(f"{library}, which runs through transformers only. Leave --engine out.")
        if context.loaded.task not in ("generation", "seq2seq"):
            raise BALoraError(f"{name} needs a language model, and {context.model_under_test.name} is a classifier.")
        chat = context.prompting("none").template == CHAT
        version = str(getattr(lm_eval, "__version__", "unknown"))
        identity = {"name": name, "version": version, "few_shot": context.options.few_shot, "chat": chat}
        journal = context.journal(f"lm_eval.{Path(name).stem if is_yaml_file(name) else name}", harness=identity)
        data = context.options.data
        trusted = context.options.task_code or not is_yaml_file(name)
        with (
            _errors_only(),
            _code(allowed=trusted),
            _task_spec(name, data.get(LM_EVAL_PREFIX + name, data.get(name))) as spec,
        ):
            model = JournaledModel(
                context.loaded, context.options.batch_size, context.options.seed, journal, context.say
            )
            output = self._run(spec, model, chat)
        results, samples = output["results"], output.get("samples", {})
        # A tag that selects several tasks has no score, only the scores by task.
        own = next(iter(results)) if len(results) == 1 else Path(name).stem
        by_task = {task: _scores(found) for task, found in results.items() if task != own}
        scores = {
            **_scores(results.get(own, {})),
            "rows": len({(task, row["doc_id"]) for task, rows in samples.items() for row in rows}),
            **({"by_task": by_task} if by_task else {}),
        }
        records = [
            {"id": f"{task}/{row['doc_id']}", **{key: _as_json(row[key]) for key in row if key not in _BOOKKEEPING}}
            for task, rows in samples.items()
            for row in rows
        ]
        if texts := [value for value in model.answered.values() if isinstance(value, str)]:
            counts = {**count_answers({"output": text} for text in texts), "answers_at_token_limit": model.at_limit()}
            context.warn_about(counts, len(texts))
            scores |= counts
        details = {"configs": _as_json(output.get("configs", {})), "versions": output.get("versions", {})}
        return from_first(lambda: journal.finish(records, scores, details))

    def _run(self, spec: str, model: Any, chat: bool) -> dict[str, Any]:
        options = self.context.options
        try:
            output = lm_eval.simple_evaluate(
                model=model,
                tasks=[spec],
                num_fewshot=options.few_shot,
                limit=options.limit,
                apply_chat_template=chat,
                task_manager=_task_manager(),
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=options.seed,
                fewshot_random_seed=options.seed,
            )
        except BALoraError:
            raise
        except Exception as error:  # the tasks are data and code of many authors and may raise anything
            if unreachable(error) or type(error).__name__ in ("DatasetNotFoundError", "LocalEntryNotFoundError"):
                raise BALoraError(
                    f"The data of {self.name} could not be reached. Check the connection, or give local files "
                    "(--data TASK=PATH)."
                ) from error
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BALoraError(f"lm-evaluation-harness could not run {self.name}: {reason.rstrip('.')}.") from error
        assert output is not None, "only ranks above 0 get None, and there is one process"
        return dict(output)


class JournaledModel(HFLM):
    """The library's class for transformers models, with a loaded model. Journaled answers are not computed again."""

    def __init__(
        self, loaded: LoadedModel, batch_size: int, seed: int, journal: Journal, say: Callable[[str], None]
    ) -> None:
        backend = "seq2seq" if loaded.task == "seq2seq" else "causal"
        super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend=backend, batch_size=batch_size)
        self._seed = seed
        self.answered: dict[str, Any] = {}
        """Answer of each request of this evaluation, by name."""
        self._token_limits: dict[str, int] = {}
        self._journal = journal
        self._block = _BLOCK * batch_size
        self._say = say

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        answers = self._answer("loglikelihood", requests, super().loglikelihood)
        return [(_log_likelihood(value), bool(greedy)) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each text."""
        answers = self._answer("loglikelihood_rolling", requests, super().loglikelihood_rolling)
        return [_log_likelihood(value) for value in answers]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Generate the answer of each request, up to its stop strings."""
        return [str(text) for text in self._answer("generate_until", requests, super().generate_until)]

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing: the library would look the model up on the hub. The result file describes the model."""
        return {}

    def at_limit(self) -> int:
        """Count the texts that have as many tokens as they may have; stop strings do not count as tokens."""
        limits = self._token_limits.items()
        return sum(
            len(self.tok_encode(self.answered[name], add_special_tokens=False)) >= limit for name, limit in limits
        )

    def _answer(self, kind: str, requests: Sequence[Any], ask: Callable[..., Sequence[Any]]) -> list[Any]:
        names = _sample_names(kind, requests, self._seed)
        missing = set(self._journal.missing(names, "answer"))
        pending = [(name, request) for name, request in zip(names, requests, strict=True) if name in missing]
        if len(pending) < len(requests):
            self._say(f"  {len(requests) - len(pending):,} of {len(requests):,} requests are answered already")
        greedy = [(name, request) for name, request in pending if not _is_sampled(kind, request)]
        sampled = [(name, request) for name, request in pending if _is_sampled(kind, request)]
        rank, processes = division()
        size = min(self._block, max(1, -(-len(greedy) // processes)))
        with progress(self._say, "requests", own_share(len(pending))) as add:
            for start in range(rank * size, len(greedy), processes * size):
                self._ask(greedy[start : start + size], ask)
                add(len(greedy[start : start + size]))
            self._ask_sampled(sampled[rank::processes], ask, add)
        self._journal.exchange()
        self.answered |= {name: self._journal.records[name]["answer"] for name in names}
        if kind == "generate_until":
            default = int(self.max_gen_toks)
            self._token_limits |= {
                name: int(request.args[1].get("max_gen_toks", default))
                for name, request in zip(names, requests, strict=True)
            }
        return [self.answered[name] for name in names]

    def _ask_sampled(
        self, pending: Sequence[tuple[str, Any]], ask: Callable[..., Sequence[Any]], add: Callable[[int], None]
    ) -> None:
        """Ask one by one: a batch is sampled from one generator, and an answer must depend on its own request and seed alone."""
        for name, request in pending:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(sample_seed(self._seed, name))
                self._ask([(name, request)], ask)
            add(1)

    def _ask(self, block: Sequence[tuple[str, Any]], ask: Callable[..., Sequence[Any]]) -> None:
        answers = ask([request for _, request in block], disable_tqdm=True)
        for (name, _), answer in zip(block, answers, strict=True):
            self._journal.add(name, answer=answer)


def _is_sampled(kind: str, request: Any) -> bool:
    """Return True for a request whose answer is drawn at random."""
    settings = request.args[1] if kind == "generate_until" else {}
    return bool(settings.get("do_sample", float(settings.get("temperature") or 0) > 0))


def _sample_names(kind: str, requests: Sequence[Any], seed: int) -> list[str]:
    """Name each request by a digest of its content and a number, because sampling makes equal requests.

    The name of a sampled request also has the seed: with another seed it gets another answer.
    """
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for request in requests:
        content = json.dumps([kind, *request.args], default=str, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:24]
        name = f"{digest}/{seen[digest]}"
        names.append(f"{name}/seed {seed}" if _is_sampled(kind, request) else name)
        seen[digest] += 1
    return names


@contextlib.contextmanager
def _code(*, allowed: bool) -> Iterator[None]:
    """Keep the templates and metrics of a task file from running code, unless it is allowed.

    The library renders templates without jinja's sandbox, and looks up a metric that it does not know in the library `evaluate`,
    which loads code by name.
    """
    if allowed:
        yield
        return
    refused: list[str] = []

    def refuse(name: str, *_: object, **__: object) -> None:
        refused.append(name)
        raise ImportError(name)

    plain, load = lm_eval.utils.env, evaluate_metrics.load
    sandboxed = ImmutableSandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandboxed.filters |= plain.filters
    lm_eval.utils.env, evaluate_metrics.load = sandboxed, refuse
    try:
        yield
    except BALoraError as error:
        if refused:
            raise InvalidOption(
                "The metric {name} is none of lm-evaluation-harness, and the library evaluate would load code of that name. If you "
                "trust it, give the option `task_code`.",
                name=refused[0],
            ) from error
        raise
    finally:
        lm_eval.utils.env, evaluate_metrics.load = plain, load


def _log_likelihood(value: float | None) -> float:
    """Return a log-likelihood from the journal, which writes minus infinity as None."""
    return float("-inf") if value is None else float(value)


@contextlib.contextmanager
def _task_spec(name: str, location: str | None) -> Iterator[str]:
    """Yield the task's name or the path of its YAML file. With local data, the file is temporary and replaces the data."""
    base = str(Path(name).expanduser().resolve()) if is_yaml_file(name) else None
    if location is None:
        yield base or name
        return
    if base is None:
        entry = _task_manager().task_index[name]
        if entry.yaml_path is None or not str(entry.kind).endswith("TASK"):
            raise BALoraError(f"{name} is a group of tasks; local data can be given for a single task only.")
        base = str(entry.yaml_path)
    with tempfile.TemporaryDirectory(prefix="balora-task-") as folder:
        path = Path(folder) / f"{Path(name).stem}.yaml"
        path.write_text(
            yaml.safe_dump({"include": base, "task": Path(name).stem, **_local_data(location)}), encoding="utf-8"
        )
        yield str(path)


def _local_data(location: str) -> dict[str, Any]:
    """Return a task's data settings for a local file, or for a directory with one file per split."""
    path = Path(location).expanduser().resolve()
    if not looks_local(location, SUFFIXES) or not path.exists():
        raise BALoraError(f"There is no file or directory {location} for a task of lm-evaluation-harness (--data).")
    files = {"test": path}
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _BUILDERS and file.name[0] != "."]
        files = {_SPLIT_ALIASES.get(file.stem, file.stem): file for file in found}
    builders = {_BUILDERS.get(file.suffix.lower()) for file in files.values()}
    if len(builders) != 1 or None in builders or not set(files) & set(_SPLITS):
        raise BALoraError(
            f"{location} must be one file, or a directory with train, validation and test files of one type: "
            f"{', '.join(_BUILDERS)}."
        )
    return {
        "dataset_path": builders.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        **{key: split if split in files else None for split, key in _SPLITS.items()},
        "fewshot_split": next((split for split in ("train", "validation") if split in files), None),
    }


@functools.cache
def _task_manager() -> Any:
    """Return the library's index of tasks. Building it takes seconds."""
    return TaskManager()


def _scores(found: Mapping[str, Any]) -> Record:
    """Rename ``acc,none`` and ``acc_stderr,none`` to ``acc`` and ``acc_stderr``. The first metric is the main score."""
    scores: Record = {}
    for key, value in found.items():
        metric, _, filter_name = key.partition(",")
        name = metric if filter_name in ("none", "") else f"{metric} ({filter_name})"
        if isinstance(value, int | float) and not isinstance(value, bool) and metric != "sample_len":
            scores[name] = float(value)
    main = next((name for name in scores if "_stderr" not in name), None)
    return {"main": "score", "score": None} if main is None else {"main": main, **scores}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str, ensure_ascii=False))


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Silence the library's log messages below errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("lm_eval", "lm-eval"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)

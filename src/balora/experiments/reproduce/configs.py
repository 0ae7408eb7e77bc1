"""Configs of the runs: eight tasks of the small scale, and the recipes of the paper.

The small scale has real data and small pre-trained models; a run takes 15 to 30 seconds of one core. Its learning rates come from a
pilot on one seed. On SST-2, of five rates from 3e-4 to 4e-3, PiSSA was best at 5e-4 (accuracy 0.770) and LoRA at 2e-3 (0.803), so
each has its own rate. On GSM8K both improved with the rate up to 8e-3; the configs use 4e-3, because the other methods had no
pilot. The other tasks had no pilot.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import EvaluationPlan
from balora.experiments.quickstart import model_directory
from balora.experiments.quickstart.task import DATA_SECTION
from balora.experiments.reproduce.experiment import Config, Paths
from balora.experiments.reproduce.preparation import SIMILARITY_CLASSES

LLAMA_METAMATHQA = "LLaMA-2-7B on MetaMathQA"
Section = Mapping[str, Any]


def small(task: str, *, model: Callable[[Paths], str] | None = None, **changes: Section) -> Config:
    """Return the config of a task of ``SMALL_TASKS``, perhaps with another model, and with changes as in `changed`."""

    def config(paths: Paths) -> dict[str, Any]:
        values = changed(SMALL_TASKS[task](paths), changes)
        return values if model is None else {**values, "model": model(paths)}

    return config


def recipe(name: str, **changes: Section) -> Config:
    """Return the config of a setting of the paper, such as ``llama-2-7b/metamathqa``, with changes as in `changed`.

    The returned function raises `BALoraError` if the recipe does not exist.
    """

    def config(paths: Paths) -> dict[str, Any]:
        path = paths.recipes / f"{name}.yaml"
        if not path.is_file():
            raise BALoraError(f"There is no recipe {path}. Give the directory of the recipes with --recipes.")
        return changed(read_config(path), changes)

    return config


def changed(values: Mapping[str, Any], changes: Mapping[str, Section]) -> dict[str, Any]:
    """Change keys of a config's sections; None removes a key.

    Example:
        >>> changed({"model": "m", "method": {"name": "lora", "rank": 8}}, {"method": {"rank": None}})
        {'model': 'm', 'method': {'name': 'lora'}}
    """
    result = dict(values)
    for section, keys in changes.items():
        merged = {**(values.get(section) or {}), **keys}
        result[section] = {key: value for key, value in merged.items() if value is not None or key not in keys}
    return result


def hub_tasks(*tasks: str) -> Callable[[Paths], EvaluationPlan]:
    """Return the evaluation on complete tasks from the hub, as in the paper."""

    def plan(paths: Paths) -> EvaluationPlan:
        judged = "mt_bench" in tasks and paths.judge is not None
        return EvaluationPlan(tasks=tasks, options={"judge": dict(paths.judge or {})} if judged else {})

    return plan


def few_gsm8k_questions(paths: Paths) -> EvaluationPlan:
    """Return the evaluation on 50 questions of GSM8K with short answers, for the small scale."""
    limits = {"limit": 50, "max_new_tokens": 128, "batch_size": 25}
    data = {"gsm8k": paths.data("gsm8k/test.jsonl")}
    return EvaluationPlan(tasks=("gsm8k",), options={"data": data, **limits, "device": "cpu"})


def run_config(
    model: str, task: str, data: Section, batch: int, rate: float, schedule: str, **training: Any
) -> dict[str, Any]:
    """Return a run's config with the settings of all tasks; the run logs and saves as little as possible."""
    shared = {
        "warmup_steps": 6, "per_device_eval_batch_size": 50, "logging_steps": 10, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "num_train_epochs": 1,
    }  # fmt: skip
    own = {"learning_rate": rate, "lr_scheduler_type": schedule, "per_device_train_batch_size": batch}
    return {
        "model": model,
        "task": task,
        "data": dict(data),
        "method": {"name": "balora", "rank": 8},
        "training": {**shared, **own, **training},
    }


def _glue(
    name: str, columns: Section, rows: int, length: int, paths: Paths, *,
    eval_slice: str = "", task: str = "classification", batch: int = 16, rate: float = 5.0e-4,
) -> dict[str, Any]:  # fmt: skip
    """Return the config of MiniLM-L6 on a sample of a GLUE task."""
    files = {"train": paths.data(f"glue/{name}/train.tsv"), "eval": paths.data(f"glue/{name}/dev.tsv") + eval_slice}
    data = {**files, "subsample": rows, "max_length": length, **columns}
    return run_config(paths.minilm, task, data, batch, rate, "linear", **_BY_LENGTH)


def _similarity(paths: Paths) -> dict[str, Any]:
    """Return the config of MiniLM-L6 on pairs of sentences of low, middle or high similarity."""
    files = {"train": str(paths.prepared / "train.jsonl"), "eval": str(paths.prepared / "dev.jsonl")}
    data = {**files, "text": _TWO_SENTENCES, "label": "label", "labels": list(SIMILARITY_CLASSES), "max_length": 48}
    return run_config(paths.minilm, "classification", data, 16, 5.0e-4, "linear", **_BY_LENGTH, num_train_epochs=2)


def _gsm8k(paths: Paths) -> dict[str, Any]:
    """Return the config of a Llama of 260 thousand parameters on GSM8K.

    The model is too small for arithmetic, so that only its loss on answers can be compared.
    """
    files = {"train": paths.data("gsm8k/train.jsonl"), "eval": f"{paths.data('gsm8k/test.jsonl')}[:100]"}
    columns = {"prompt": "question", "response": "answer"}
    data = {**files, "subsample": 320, **columns, "max_length": 256}
    return run_config(paths.stories, "generation", data, 8, 4.0e-3, "cosine")


def _g2p(paths: Paths) -> dict[str, Any]:
    """Return the config of a BART of 750 thousand parameters on words and phonemes, with a fifth of the answers swapped.

    The model was pre-trained on this task. The loss on right answers shows the damage by training on wrong ones.
    """
    pairs = paths.data("g2p/pairs.jsonl")
    files = {"train": pairs, "split": "train[:19600]", "eval": f"{pairs}[19600:]"}
    columns = {"prompt": "word", "response": "phonemes", "target_tokenizer": f"{paths.bart}/target"}
    data = {**files, "subsample": 1280, "label_noise": 0.2, **columns, "max_length": 32}
    return run_config(paths.bart, "seq2seq", data, 16, 1.0e-3, "cosine")


def _quickstart(paths: Paths) -> dict[str, Any]:
    """Return the config of the quickstart's Llama on its task: short answers, a fifth of them wrong in training."""
    files = {"train": str(paths.prepared / "train.jsonl"), "eval": str(paths.prepared / "test.jsonl")}
    data = {**files, "subsample": 1280, **DATA_SECTION}
    return run_config(str(model_directory()), "generation", data, 16, 2.0e-3, "cosine")


_BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
_ONE_SENTENCE = {"text": "sentence", "label": "label"}
_TWO_SENTENCES = ["sentence1", "sentence2"]
SMALL_TASKS: dict[str, Callable[[Paths], dict[str, Any]]] = {
    "sst2": functools.partial(_glue, "SST-2", _ONE_SENTENCE, 1280, 48),
    "cola": functools.partial(_glue, "CoLA", _ONE_SENTENCE, 2560, 48),
    "rte": functools.partial(_glue, "RTE", {"text": _TWO_SENTENCES, "label": "label"}, 640, 96),
    # A batch of 4 gives more steps: a regression's head starts far from the scores' mean.
    "stsb": functools.partial(
        _glue, "STS-B", {"text": _TWO_SENTENCES, "score": "score"}, 960, 64,
        eval_slice="[:750]", task="regression", batch=4, rate=1.0e-3,
    ),
    "similarity": _similarity,
    "gsm8k": _gsm8k,
    "g2p": _g2p,
    "quickstart": _quickstart,
}  # fmt: skip
"""Tasks of the small scale by name."""

"""The inheritance laboratory as an experiment: both starts, two tasks, methods and anchors. Not of the paper."""

from typing import Any

from balora.experiments.compare import Variant
from balora.experiments.inheritance.page import ANCHORED, laboratory_page
from balora.experiments.inheritance.starts import CLEAN, FLAWED, STARTS, TASK_NOISE, start_directory
from balora.experiments.quickstart.task import DATA_SECTION
from balora.experiments.reproduce import variants as v
from balora.experiments.reproduce.configs import run_config
from balora.experiments.reproduce.experiment import Config, Paths, Study, declare
from balora.experiments.reproduce.parts import study_tables
from balora.experiments.reproduce.tables import METHODS

_FULL_RATE = {"full": "5e-4"}


def anchored(source: str) -> Variant:
    """Return LoRA with anchors: ``generated``, or texts of the clean or the flawed corpus that the model has not read."""
    value = "generated" if source == "generated" else f"{{prepared}}/anchors_{source}.txt"
    return Variant(name=ANCHORED.format(source), method="lora", regularized=False, overrides=(f"anchor={value}",))


def _config(start: str, task: str, rows: int | None) -> Config:
    def config(paths: Paths) -> dict[str, Any]:
        files = {
            name: str(paths.prepared / f"{file}.jsonl") for name, file in (("train", f"train_{task}"), ("eval", "test"))
        }
        sample = {} if rows is None else {"subsample": rows}
        data = {**files, **sample, **DATA_SECTION}
        return run_config(start_directory(paths, start), "generation", data, 16, 2.0e-3, "cosine")

    return config


def _studies(variants: list[Variant], rows: int | None, seconds: float | None) -> list[Study]:
    return [
        Study(
            f"{start}_{task}", f"{start} start, {task} task", _config(start, task, rows), variants, baseline="lora",
            seconds=seconds,
        )
        for start in (CLEAN, FLAWED)
        for task in TASK_NOISE
    ]  # fmt: skip


_ANCHORS = [anchored(source) for source in ("generated", CLEAN, FLAWED)]
_FEW = v.methods("full", "lora", "pissa", "balora", "lora+reg", rates=_FULL_RATE)
_ALL = v.methods(*METHODS, "lora+reg", rates=_FULL_RATE)
INHERITANCE = declare(
    "inheritance",
    small=_studies([*_FEW, *_ANCHORS], 1280, 6.0),
    paper=_studies([*_ALL, *_ANCHORS], None, None),
    page=[laboratory_page, study_tables],
    preparation=STARTS,
    always_prepared=True,
)

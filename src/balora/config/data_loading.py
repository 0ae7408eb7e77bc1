"""Rules of ``data.packing`` and ``data.streaming``, which concern keys of other sections, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from balora.config.data_columns import is_on
from balora.methods.registry import METHODS

_NEED_ALL_ROWS = ("also", "packing", "subsample", "imbalance", "label_noise", "duplicate")


def loading_problems(values: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """List what does not fit together with packing or streaming, one sentence each.

    Args:
        values: The config as the user wrote it.
        data: Its ``data`` section.
    """
    training = values.get("training")
    training = training if isinstance(training, Mapping) else {}
    return [*_packing_problems(data, training), *_streaming_problems(values, data, training)]


def _packing_problems(data: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    packing, longest = data.get("packing"), data.get("max_length", 512)
    if not is_on(packing):
        return []
    problems = []
    if isinstance(packing, int) and packing is not True and isinstance(longest, int) and packing < longest:
        problems.append(
            f"data.packing {packing} is below data.max_length {longest}, so an example could be longer than a packed row. Raise "
            "data.packing, or lower data.max_length."
        )
    if training.get("neftune_noise_alpha"):
        problems.append(
            "training.neftune_noise_alpha scales its noise by the length of a row, so with data.packing it would be another "
            "noise. Leave one of them out."
        )
    return problems


def _streaming_problems(values: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    if not is_on(data.get("streaming")):
        return ["data.shuffle_buffer is for data.streaming; leave it out."] if _changed_buffer(data) else []
    problems = [
        f"data.{key} needs all rows at once, and data.streaming reads them one by one; leave one of them out."
        for key in _NEED_ALL_ROWS
        if is_on(data.get(key))
    ]
    task, evaluation = values.get("task"), data.get("eval")
    learns_text = not (data.get("label") or data.get("score"))
    method = values.get("method")
    name = method.get("name", "balora") if isinstance(method, Mapping) else "balora"
    by_epoch = [key for key in ("save_strategy", "eval_strategy", "logging_strategy") if training.get(key) == "epoch"]
    rules = (
        (
            task not in ("generation", "seq2seq") or not learns_text,
            "data.streaming is for generation, and for seq2seq with prompt and response: classes and scores need all rows.",
        ),
        (
            not _is_positive(training.get("max_steps")),
            "data.streaming needs training.max_steps, because a stream has no known number of rows.",
        ),
        (
            _is_fraction(evaluation),
            "data.eval as a fraction needs all rows, and data.streaming reads them one by one; give a file or a split.",
        ),
        (
            isinstance(data.get("split"), str) and "[" in data["split"],
            "data.split as a slice needs all rows, and data.streaming reads them one by one; give the name of a split.",
        ),
        (
            bool(training.get("dataloader_num_workers")),
            "training.dataloader_num_workers cannot be used with data.streaming: each worker would read all rows.",
        ),
        (
            training.get("train_sampling_strategy") not in (None, "random"),
            "training.train_sampling_strategy needs all rows, and data.streaming reads them one by one; leave it out.",
        ),
        (
            values.get("teacher_cache", "auto") not in ("auto", "off"),
            "teacher_cache as a folder needs all rows, and data.streaming reads them one by one; leave one of them out.",
        ),
        (
            name in METHODS and METHODS[name].needs_data,
            f"Method {name} computes its initial values from rows drawn from all, and data.streaming reads them one by one; leave "
            "data.streaming out, or choose another method.",
        ),
        (
            bool(by_epoch),
            f"{' and '.join(f'training.{key}' for key in by_epoch)}: a stream has no epochs; use steps, or leave it out.",
        ),
    )
    return problems + [message for wrong, message in rules if wrong]


def _changed_buffer(data: Mapping[str, Any]) -> bool:
    return data.get("shuffle_buffer") not in (None, 10_000)  # every resolved config spells out the default


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_fraction(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, bool) and 0 < float(value) < 1
    except (TypeError, ValueError):
        return False

"""Load a pre-trained model and its tokenizers.

Weights in pickle form and code that comes with a model are refused, unless the source allows them (``allow_pickle``,
``trust_remote_code``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.data.collate import ensure_pad_token
from balora.data.hub import unreachable
from balora.errors import BALoraError, raise_all
from balora.loading.pretrained_checks import (
    CONVERT_PICKLE,
    check_complete,
    check_vocabulary,
    load_config,
    loading_error,
    missing_directory,
    model_problems,
)
from balora.loading.source import Location, ModelSource

AUTO_CLASSES = {
    "generation": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
}
"""Class that loads a model, by task."""
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges", "tekken")
_POSITIONS_FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "longformer"),
    *("ibert", "luke", "mpnet", "xmod", "lilt", "markuplm", "layoutlmv3"),
)
"""Model types that count positions from the index of the padding token."""


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, and give it a pad token if it has none.

    Raises:
        BALoraError: The tokenizer is missing or broken, cannot be reached, or needs code of its own.
    """
    return _load_tokenizer(source.tokenizer or source.model, source)


def load_target_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the responses (seq2seq); return None if the source names none.

    Raises:
        BALoraError: As `load_tokenizer`.
    """
    return None if source.target_tokenizer is None else _load_tokenizer(source.target_tokenizer, source)


def load_model(
    source: ModelSource,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Load a pre-trained model with the head its task needs.

    Args:
        source: Place and loading options of the model.
        num_labels: Number of classes of a classification head; ignored for regression, which has 1 output.
        id2label: Class names by number.
        tokenizer: Tokenizer of the model. Its vocabulary is checked, and its pad token becomes the model's.

    Returns:
        The model in eval mode on the CPU. Only a classification head may have new, random weights.

    Raises:
        BALoraError: The model is missing, broken, of the wrong kind, in pickle form, needs code of its own, or has a
            smaller vocabulary than the tokenizer.
    """
    raise_all(model_problems(source), f"The model {source.model.name} cannot be loaded")
    model = _from_pretrained(source, load_config(source), _head_config(source.task, num_labels, id2label))
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
        set_pad_token(model, tokenizer)
    target = load_target_tokenizer(source)
    if target is not None:
        check_vocabulary(model, target, target=True)
    return model


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the pad token into the model's configs: a classifier on a decoder reads the last token that is no padding."""
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the largest number of tokens a model takes, or None if its config names no limit.

    RoBERTa and its relatives count positions from the padding index, so they take fewer tokens than their config says.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - (text.pad_token_id or 0) - 1 if text.model_type in _POSITIONS_FROM_PADDING else limit


def _load_tokenizer(location: Location, source: ModelSource) -> PreTrainedTokenizerBase:
    directory = location.directory
    if not location.available:
        raise BALoraError(missing_directory(location))
    if directory is not None and not any(p.name.startswith(_TOKENIZER_FILES) for p in directory.iterdir()):
        raise BALoraError(
            f"The folder {location.name} ({location.key}) has no tokenizer. Name a folder or hub id that has one "
            "(tokenizer: ...)."
        )
    revision = source.revision if location.name == source.model.name else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location.path, revision=revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # a broken tokenizer.json makes the Rust library raise a bare Exception
        raise loading_error(error, location, "tokenizer") from error
    ensure_pad_token(tokenizer)
    return tokenizer


def _head_config(task: str, num_labels: int | None, id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """Return the entries that a classification head adds to the model's config."""
    if task in ("generation", "seq2seq"):
        return {}
    if task == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    assert num_labels is not None, "a classifier needs its number of labels"
    names = {} if id2label is None else {"id2label": dict(id2label), "label2id": {n: i for i, n in id2label.items()}}
    return {"num_labels": num_labels, "problem_type": "single_label_classification", **names}


def _from_pretrained(source: ModelSource, config: PretrainedConfig, head: Mapping[str, Any]) -> PreTrainedModel:
    for key, value in head.items():
        setattr(config, key, value)
    try:
        model, report = AUTO_CLASSES[source.task].from_pretrained(
            source.model.path,
            config=config,
            revision=source.revision,
            dtype=source.dtype if source.dtype == "auto" else getattr(torch, source.dtype),
            use_safetensors=None if source.allow_pickle else True,
            trust_remote_code=source.trust_remote_code,
            ignore_mismatched_sizes=bool(head),  # replaces a stored head that has other classes
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the exception of a damaged checkpoint depends on where the damage is
        if "safetensors" in str(error) and source.model.directory is None and not unreachable(error):
            raise BALoraError(
                f"{source.model.name} has no weights in safetensors form, only in pickle form, which can run any code on "
                f"loading. {CONVERT_PICKLE}"
            ) from error
        raise loading_error(error, source.model, "model") from error
    check_complete(model, report, source)
    return model.eval()


__all__ = [
    "AUTO_CLASSES",
    "check_vocabulary",
    "load_config",
    "load_model",
    "load_target_tokenizer",
    "load_tokenizer",
    "max_positions",
    "model_problems",
    "set_pad_token",
]

"""The pre-trained model and its tokenizer, loaded as a config says.

Safetensors only, and no code from elsewhere, unless the config says otherwise (``allow_pickle``,
``trust_remote_code``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.config.run_config import RunConfig
from balora.data.collate import ensure_pad_token
from balora.data.hub import looks_local, unreachable
from balora.errors import BALoraError, raise_all
from balora.loading.pretrained_checks import (
    CONVERT,
    check_complete,
    check_vocabulary,
    load_config,
    model_problems,
    no_folder,
    place,
    said,
)

AUTO_CLASSES = {
    "generation": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
}
"""The class that loads a model for each task."""
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges", "tekken")
_COUNTS_FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "longformer"),
    *("ibert", "luke", "mpnet", "xmod", "lilt", "markuplm", "layoutlmv3"),
)


def load_tokenizer(settings: RunConfig) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, with a pad token.

    Raises:
        BALoraError: It is missing, broken, cannot be reached, or needs code of its own.
    """
    return _tokenizer(settings.tokenizer or settings.model, "tokenizer" if settings.tokenizer else "model", settings)


def load_target_tokenizer(settings: RunConfig) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the responses, where the config names another one for them (seq2seq).

    Raises:
        BALoraError: As `load_tokenizer`.
    """
    name = settings.data.target_tokenizer
    return None if name is None else _tokenizer(name, "data.target_tokenizer", settings)


def load_model(
    settings: RunConfig,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Load the pre-trained model with the head its task needs.

    Args:
        settings: The run's.
        num_labels: Classes of a classification head; for regression it is 1.
        id2label: Their names.
        tokenizer: The model's; its vocabulary is checked, and its pad token becomes the model's.

    Returns:
        The model, in eval mode, on the CPU. Weights it lacks are fresh only in a classification head.

    Raises:
        BALoraError: The model is missing, broken, of the wrong kind, in pickle form, needs code of its own, or its
            vocabulary is smaller than the tokenizer's.
    """
    raise_all(model_problems(settings), f"The model {settings.model} cannot be loaded")
    config = load_config(settings)
    head = _head_settings(settings.task, num_labels, id2label)
    model = _from_pretrained(settings, config, head)
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
        set_pad_token(model, tokenizer)
    target = load_target_tokenizer(settings)
    if target is not None:
        check_vocabulary(model, target, target=True)
    return model


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model which token pads: a classifier on a decoder looks for the last token that is not padding."""
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest input a model can take, where its config says so.

    RoBERTa's kind counts positions from the padding index on, which takes that many from the number in its config.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - (text.pad_token_id or 0) - 1 if text.model_type in _COUNTS_FROM_PADDING else limit


def _tokenizer(name: str, key: str, settings: RunConfig) -> PreTrainedTokenizerBase:
    folder = Path(name).expanduser()
    if looks_local(name) and not folder.is_dir():
        raise BALoraError(no_folder(name, key))
    if looks_local(name) and not any(p.name.startswith(_TOKENIZER_FILES) for p in folder.iterdir()):
        raise BALoraError(
            f"The folder {name} ({key}) has no tokenizer; name a folder or hub id that has one (tokenizer: ...)."
        )
    revision = settings.revision if name == settings.model else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place(name), revision=revision, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:  # a broken tokenizer.json makes the Rust library raise a bare Exception
        raise said(error, key, name, "tokenizer") from error
    ensure_pad_token(tokenizer)
    return tokenizer


def _head_settings(task: str, num_labels: int | None, id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """What a classification head adds to the model's config."""
    if task in ("generation", "seq2seq"):
        return {}
    if task == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    assert num_labels is not None, "a classifier needs its number of labels"
    names = {} if id2label is None else {"id2label": dict(id2label), "label2id": {n: i for i, n in id2label.items()}}
    return {"num_labels": num_labels, "problem_type": "single_label_classification", **names}


def _from_pretrained(settings: RunConfig, config: PretrainedConfig, head: Mapping[str, Any]) -> PreTrainedModel:
    for key, value in head.items():
        setattr(config, key, value)
    try:
        model, report = AUTO_CLASSES[settings.task].from_pretrained(
            place(settings.model),
            config=config,
            revision=settings.revision,
            dtype=settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
            use_safetensors=None if settings.allow_pickle else True,
            trust_remote_code=settings.trust_remote_code,
            ignore_mismatched_sizes=bool(head),  # a head for other classes gives way to a fresh one
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a damaged or unfit checkpoint raises depends on where it is damaged
        if "safetensors" in str(error) and not looks_local(settings.model) and not unreachable(error):
            raise BALoraError(
                f"{settings.model} has no weights in safetensors form, only in pickle form, which can run any code on "
                f"loading. {CONVERT}"
            ) from error
        raise said(error, "model", settings.model, "model") from error
    check_complete(model, report, settings)
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

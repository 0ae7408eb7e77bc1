"""Find everything that makes a pre-trained model unusable; most of it before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from balora.data.hub import unreachable
from balora.errors import BALoraError, suggest
from balora.files import read_json
from balora.loading.source import Location, ModelSource

_MODEL_TYPES = {
    "generation": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "regression": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
"""Model types that transformers has a class for, by task."""
CONVERT_PICKLE = (
    "Convert them once (AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors), or, if you trust "
    "their source, set allow_pickle: true."
)
"""Advice for weights in pickle form."""


def model_problems(source: ModelSource) -> list[str]:
    """List what is wrong with a model, without loading its weights.

    Returns:
        One sentence per problem. Empty for a local model that can be loaded, and for a hub id, which is not asked for.
    """
    if source.model.directory is None:
        return []
    if not source.model.available:
        return [missing_directory(source.model)]
    try:
        config = load_config(source)
    except BALoraError as error:
        return [str(error)]
    found = (_architecture_problem(config, source), _weights_problem(source.model.directory, source))
    return [problem for problem in found if problem]


def missing_directory(location: Location) -> str:
    """Return the error message for a local name that is no directory."""
    assert location.directory is not None
    what = (
        f"The model folder {location.name}"
        if location.key == "model"
        else f"The folder {location.name} ({location.key})"
    )
    if location.directory.is_file():
        return f"{what} is a file. Give the folder it is in."
    parent = location.directory.parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    return f"{what} does not exist.{suggest(location.directory.name, siblings)}"


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's ``config.json``.

    Raises:
        BALoraError: The file is missing, is not JSON, cannot be reached, or needs code of its own.
    """
    directory = source.model.directory
    if directory is not None and not (directory / "config.json").is_file():
        hint = ""
        if (directory / "adapter_config.json").is_file():
            hint = " It holds an adapter. Give the model the adapter was made for."
        elif (directory / "run.json").is_file():
            hint = " It holds a run. Give the model that was trained, or what `balora export --to merged` makes of the run."
        raise BALoraError(
            f"The model folder {source.model.name} has no config.json, so it is not a transformers model.{hint}"
        )
    try:
        return AutoConfig.from_pretrained(
            source.model.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise loading_error(error, source.model, "model") from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, target: bool = False) -> None:
    """Refuse a tokenizer that can produce tokens the model does not know.

    Args:
        model: A loaded model.
        tokenizer: Tokenizer of its inputs or responses.
        target: Whether the tokenizer is for responses, so that the model's output head is compared.

    Raises:
        BALoraError: The model's vocabulary is smaller; the message gives both sizes.
    """
    matrix = model.get_output_embeddings() if target else model.get_input_embeddings()
    known = int(matrix.weight.shape[0])  # type: ignore[union-attr, index]
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > known:
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} has {needed:,} tokens and the model {model.name_or_path} knows "
            f"{known:,}. Take the tokenizer that belongs to the model."
        )


def check_complete(model: PreTrainedModel, report: Mapping[str, Any], source: ModelSource) -> None:
    """Refuse a model that has new, random weights anywhere but in a classification head or a pooler.

    Args:
        model: The loaded model.
        report: Loading info of ``from_pretrained``.
        source: Where the model came from.

    Raises:
        BALoraError: The checkpoint lacks weights; the message counts them and names one.
    """
    random = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if source.task in ("classification", "regression"):
        base = f"{model.base_model_prefix}."
        random = [key for key in random if key.startswith(base) and "pooler" not in key]
    if random:
        raise BALoraError(
            f"The weights of {source.model.name} do not fill a {type(model).__name__}: {len(random)} tensors would be "
            f"random, such as {random[0]}. Check that config.json belongs to these weights, and that the model was made "
            f"for task {source.task}."
        )


def loading_error(error: Exception, location: Location, what: str) -> BALoraError:
    """Turn an exception of transformers into one sentence for the user.

    Args:
        error: The exception.
        location: What was to be loaded.
        what: ``model`` or ``tokenizer``.
    """
    text, name = " ".join(str(error).split()), location.name
    if "trust_remote_code" in text or "custom code" in text:
        return BALoraError(
            f"The {what} of {name} needs code that comes with it. If you have read that code and trust it, set "
            "trust_remote_code: true; otherwise choose a model that transformers knows."
        )
    if location.directory is None:
        if unreachable(error):
            return BALoraError(
                f"{name} ({location.key}) is no local folder, and as a hub id it could not be reached. Check the "
                "connection, or give a local folder."
            )
        if "gated" in text or "not a valid model identifier" in text:
            return BALoraError(
                f"There is no {what} {name} ({location.key}), neither here nor on the hub, or you have no access to it. "
                "For a private or gated one, ask for access and log in (hf auth login)."
            )
    reason = ". ".join(text.split(". ")[:2])[:300].rstrip(".") or type(error).__name__
    return BALoraError(f"The {what} of {name} ({location.key}) cannot be loaded: {reason}.")


def _architecture_problem(config: PretrainedConfig, source: ModelSource) -> str | None:
    """Return why a model of this type cannot do the task, or None."""
    kind, task, name = config.model_type, source.task, source.model.name
    if source.trust_remote_code and getattr(config, "auto_map", None):
        return None  # only the model's own code knows
    if task == "generation" and config.is_encoder_decoder:
        return f"{name} is an encoder-decoder model ({kind}). Use task: seq2seq."
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task == "generation" and masked and not getattr(config, "is_decoder", False):
        return f"{name} is an encoder ({kind}), which does not generate text. Use task: classification or regression."
    if kind not in _MODEL_TYPES[task]:
        possible = [other for other, kinds in _MODEL_TYPES.items() if kind in kinds]
        return (
            f"{name} is a {kind} model, which cannot do task {task}. It can do "
            f"{', '.join(possible) or 'none of the tasks'}."
        )
    return None


def _weights_problem(directory: Path, source: ModelSource) -> str | None:
    """Return why a directory's weights cannot be loaded (missing, incomplete, damaged, in pickle form), or None."""
    name, again = source.model.name, "Copy or download it again."
    index = directory / "model.safetensors.index.json"
    files = [directory / "model.safetensors"] if (directory / "model.safetensors").is_file() else []
    if not files and index.is_file():
        try:
            files = [directory / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
        except (BALoraError, KeyError, AttributeError) as error:
            return f"{index} is broken ({type(error.__cause__ or error).__name__}). {again}"
    if not files:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern))
        if not pickles:
            return f"The model folder {name} has no weights (model.safetensors)."
        if source.allow_pickle:
            return None
        return f"The weights of {name} are in pickle form ({pickles[0]}), which can run any code on loading. {CONVERT_PICKLE}"
    for file in files:
        if not file.is_file():
            return f"The weights of {name} are incomplete: {file.name} is missing. {again}"
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"The weights file {file} is damaged ({error}). {again}"
    return None

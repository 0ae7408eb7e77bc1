"""Load a pre-trained model and its tokenizers, after checks that need no weights.

Weights in pickle form and code that comes with a model are refused, unless the source allows them (``allow_pickle``,
``trust_remote_code``).
"""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from balora.data.collate import ensure_pad_token
from balora.data.conversations.chat_templates import set_chat_template
from balora.data.files.hub import unreachable
from balora.errors import BALoraError, raise_all
from balora.loading import model_files
from balora.loading.languages import set_answer_language, set_languages
from balora.loading.source import Location, ModelSource, missing_directory
from balora.models.multimodal import IMAGE_TEXT_CLASSES, MULTIMODAL_CLASSES

AUTO_CLASSES = {
    "generation": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
}
"""Class that loads a model, by task."""
_MODEL_TYPES = {
    "generation": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "regression": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
"""Model types that transformers has a class for, by task."""
logger = logging.getLogger("balora")
_HEAD_TASKS = ("classification", "regression")
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges", "tekken")
_POSITIONS_FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "longformer"),
    *("ibert", "luke", "mpnet", "xmod", "lilt", "markuplm", "layoutlmv3"),
)
"""Model types that count positions from the index of the padding token."""
_CONVERT_PICKLE = (
    "Convert them once (AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors), or, if you trust "
    "their source, set allow_pickle: true."
)


def load_tokenizer(source: ModelSource, *, languages_required: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, give it a pad token if it has none, and set the languages of the source.

    With ``languages_required`` a multilingual tokenizer without languages is refused for seq2seq.
    """
    tokenizer = _load_tokenizer(source.tokenizer or source.model, source, languages_required=languages_required)
    if source.chat_template is not None:
        set_chat_template(tokenizer, source.chat_template)
    return tokenizer


def load_target_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the responses (seq2seq); return None if the source names none."""
    return None if source.target_tokenizer is None else _load_tokenizer(source.target_tokenizer, source)


def load_model(
    source: ModelSource,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | None = None,
) -> PreTrainedModel:
    """Load a pre-trained model with the head its task needs, in eval mode on the CPU.

    On the ``device`` meta the same checks are made, and no weight is read.

    ``num_labels`` and ``id2label`` describe the head of a classifier; a regression head has 1 output. The vocabulary of
    ``tokenizer`` is checked, and its pad token becomes the model's. Only a classification head may have new, random weights.
    """
    raise_all(model_problems(source), f"The model {source.model.name} cannot be loaded")
    config = load_config(source)
    if source.task == "regression":
        config.update({"num_labels": 1, "problem_type": "regression"})
    elif source.task == "classification":
        assert num_labels is not None, "a classifier needs its number of labels"
        config.update({"num_labels": num_labels, "problem_type": "single_label_classification"})
        if id2label is not None:
            config.update({"id2label": dict(id2label), "label2id": {name: i for i, name in id2label.items()}})
    return fit_tokenizer(_from_pretrained(source, config, device), source, tokenizer)


def fit_tokenizer(
    model: PreTrainedModel, source: ModelSource, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    """Check the vocabulary of the tokenizers against the model, and set the model's pad token and its language of answers."""
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
        # A classifier on a decoder reads the last token that is no padding.
        for part in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
            if part is not None:
                part.pad_token_id = tokenizer.pad_token_id
    target = load_target_tokenizer(source)
    if target is not None:
        check_vocabulary(model, target, target=True)
    if source.task == "seq2seq" and (target or tokenizer) is not None:
        set_answer_language(model, target or tokenizer)
    return model


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's ``config.json``."""
    _check_config_file(source.model)
    try:
        return AutoConfig.from_pretrained(
            source.model.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # a wrong value in config.json can raise any exception
        raise _loading_error(error, source.model, "model") from error


def _check_config_file(model: Location) -> None:
    """Refuse a local model without a usable config.json, and say what its folder holds instead."""
    if model.directory is None:
        return
    path = model.directory / "config.json"
    if not path.exists():
        hint = model_files.describe_directory(model.directory)
        raise BALoraError(f"The model folder {model.name} has no config.json, so it is not a transformers model.{hint}")
    problem = model_files.config_problem(path)
    if problem:
        raise BALoraError(problem)


def model_problems(source: ModelSource) -> list[str]:
    """List what is wrong with a local model, one sentence per problem, without loading its weights."""
    if source.model.directory is None:
        return []
    if source.model.missing:
        return [missing_directory(source.model)]
    try:
        config = load_config(source)
    except BALoraError as error:
        return [str(error)]
    directory = source.model.directory
    found = (
        _architecture_problem(config, source),
        _weights_problem(directory, source, config),
        model_files.json_problem(directory / "generation_config.json"),
    )
    return [problem for problem in found if problem]


def auto_class(task: str, config: PretrainedConfig) -> Any:
    """Return the class that loads a model for a task; for generation this may be one for images or sound and text."""
    if task == "generation" and _reads_more_than_text(config):
        images = config.model_type in IMAGE_TEXT_CLASSES
        return transformers.AutoModelForImageTextToText if images else transformers.AutoModelForMultimodalLM
    return AUTO_CLASSES[task]


def _reads_more_than_text(config: PretrainedConfig) -> bool:
    """Return whether transformers has only a multimodal class for a decoder, and that class can run on text alone."""
    name = MULTIMODAL_CLASSES.get(config.model_type)
    if name is None or config.is_encoder_decoder or config.model_type in _MODEL_TYPES["generation"]:
        return False
    parameters = inspect.signature(getattr(transformers, name).forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return set(needed) <= {"self", "input_ids"}


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the largest number of tokens a model takes, or None if its config names no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - (text.pad_token_id or 0) - 1 if text.model_type in _POSITIONS_FROM_PADDING else limit


def _load_tokenizer(
    location: Location, source: ModelSource, *, languages_required: bool = True
) -> PreTrainedTokenizerBase:
    if location.missing:
        raise BALoraError(missing_directory(location))
    if location.key == "model":
        _check_config_file(location)
    directory = location.directory
    if directory is not None and not any(p.name.startswith(_TOKENIZER_FILES) for p in directory.iterdir()):
        raise BALoraError(
            f"The folder {location.name} ({location.key}) has no tokenizer. Name a folder or hub id that has one "
            "(tokenizer: ...)."
        )
    problem = model_files.tokenizer_problem(directory) if directory is not None else None
    if problem:
        raise BALoraError(problem)
    revision = source.revision if location.name == source.model.name else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location.path, revision=revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # a broken tokenizer.json makes the Rust library raise a bare Exception
        raise _loading_error(error, location, "tokenizer") from error
    set_languages(tokenizer, source, required=languages_required)
    ensure_pad_token(tokenizer)
    return tokenizer


def _from_pretrained(source: ModelSource, config: PretrainedConfig, device: str | None = None) -> PreTrainedModel:
    try:
        model, report = auto_class(source.task, config).from_pretrained(
            source.model.path,
            config=config,
            revision=source.revision,
            dtype=source.dtype if source.dtype == "auto" else getattr(torch, source.dtype),
            use_safetensors=None if source.allow_pickle else True,
            trust_remote_code=source.trust_remote_code,
            ignore_mismatched_sizes=source.task in _HEAD_TASKS,  # replaces a stored head that has other classes
            output_loading_info=True,
            device_map=device,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the exception of a damaged checkpoint depends on where the damage is
        if "safetensors" in str(error) and source.model.directory is None and not unreachable(error):
            raise BALoraError(
                f"{source.model.name} has no weights in safetensors form, only in pickle form, which can run any code on "
                f"loading. {_CONVERT_PICKLE}"
            ) from error
        if "ignore_mismatched_sizes" in str(error):  # transformers says which in a table that it logs
            raise _other_sizes(source, config) from error
        raise _loading_error(error, source.model, "model") from error
    unused = model_files.unused_layers(model, report["unexpected_keys"])
    if unused:
        logger.warning(
            "The weights of %s have layers that its config.json leaves out, such as %s: %s tensors are not used.",
            source.model.name, min(unused), len(unused),
        )  # fmt: skip
    random = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if source.task in _HEAD_TASKS:  # the head may be new, and so may a pooler
        base = f"{model.base_model_prefix}."
        random = [key for key in random if key.startswith(base) and "pooler" not in key]
    if random:
        raise BALoraError(
            f"The weights of {source.model.name} do not fill a {type(model).__name__}: {len(random)} tensors would be "
            f"random, such as {random[0]}. Check that config.json belongs to these weights, and that the model was made "
            f"for task {source.task}."
        )
    model_files.refuse_nonfinite_weights(model, source.model.name)
    return model.eval()


def _other_sizes(source: ModelSource, config: PretrainedConfig) -> BALoraError:
    """Describe the tensors whose stored sizes are not those of the config. No weight is read for this."""
    _, report = auto_class(source.task, config).from_pretrained(
        source.model.path, config=config, revision=source.revision, trust_remote_code=source.trust_remote_code,
        use_safetensors=None if source.allow_pickle else True, ignore_mismatched_sizes=True, output_loading_info=True,
        device_map="meta",
    )  # fmt: skip
    key, stored, wanted = min((key, tuple(stored), tuple(wanted)) for key, stored, wanted in report["mismatched_keys"])
    more = f" ({len(report['mismatched_keys']) - 1} more)" if len(report["mismatched_keys"]) > 1 else ""
    sizes = [" x ".join(map(str, shape)) for shape in (stored, wanted)]
    return BALoraError(
        f"The weights of {source.model.name} do not have the sizes that its config.json says: {key} is {sizes[0]} and should be "
        f"{sizes[1]}{more}. Check that both belong together."
    )


def from_config(source: ModelSource, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model with random weights. Values of the config that no model can have raise `BALoraError`."""
    try:
        return auto_class(source.task, config).from_config(  # type: ignore[no-any-return]
            config, dtype=dtype, trust_remote_code=source.trust_remote_code
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _loading_error(error, source.model, "model") from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, target: bool = False) -> None:
    """Refuse a tokenizer with more tokens than the model's embedding has rows, or its output head with ``target``."""
    matrix = model.get_output_embeddings() if target else model.get_input_embeddings()
    known = int(matrix.weight.shape[0])  # type: ignore[union-attr, index]
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > known:
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} has {needed:,} tokens and the model {model.name_or_path} knows "
            f"{known:,}. Take the tokenizer that belongs to the model. If tokens were added to it on purpose, save the model with "
            f"resize_token_embeddings({needed}) and give that folder as model."
        )


def _loading_error(error: Exception, location: Location, what: str) -> BALoraError:
    """Turn an exception of transformers, raised while loading ``what`` (model or tokenizer), into one sentence."""
    text, name = " ".join(str(error).split()), location.name
    if "trust_remote_code" in text or "custom code" in text:
        return BALoraError(
            f"The {what} of {name} needs code that comes with it. If you have read that code and trust it, set "
            "trust_remote_code: true; otherwise choose a model that transformers knows."
        )
    if location.directory is None:
        if "gguf" in name.lower():
            return BALoraError(f"{name} ({location.key}) is a repository {model_files.GGUF}")
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
    if isinstance(error, KeyError):
        return BALoraError(
            f"The {what} of {name} ({location.key}) cannot be loaded: transformers does not know the value {text} of its config. "
            "Check its config.json, or update transformers."
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
    multimodal = _reads_more_than_text(config)
    if task == "seq2seq" and multimodal:
        return f"{name} is a {kind} model, which has no encoder for text. Use task: generation."
    if kind not in _MODEL_TYPES[task] and not (task == "generation" and multimodal):
        kinds_of = {
            other: kinds
            for other, kinds in _MODEL_TYPES.items()
            if other != "generation" or not config.is_encoder_decoder
        }
        possible = ", ".join(other for other, kinds in kinds_of.items() if kind in kinds) or "none of the tasks"
        return f"{name} is a {kind} model, which cannot do task {task}. It can do {possible}."
    return None


def _weights_problem(directory: Path, source: ModelSource, config: PretrainedConfig) -> str | None:
    """Return why a directory's weights cannot be loaded (missing, incomplete, damaged, in pickle form), or None."""
    name = source.model.name
    try:
        files = model_files.weight_files(directory)
    except BALoraError as error:
        return str(error)
    if files:
        return (
            model_files.weights_problem(files, name)
            or model_files.layers_problem(config, files, name)
            or model_files.quantization_problem(config, files, name)
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        if any("-of-" in file for file in others):
            return (
                f"The weights of {name} lack model.safetensors.index.json, which says which file has which tensor. "
                f"{model_files.AGAIN}"
            )
        return f"The folder {name} has {others[0]}, but transformers reads model.safetensors. Rename the file if it is the model."
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern))
    if not pickles:
        return f"The model folder {name} has no weights (model.safetensors).{model_files.describe_directory(directory)}"
    if source.allow_pickle:
        return None
    return (
        f"The weights of {name} are in pickle form ({pickles[0]}), which can run any code on loading. {_CONVERT_PICKLE}"
    )

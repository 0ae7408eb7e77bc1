"""What can be wrong with a pre-trained model, said in one sentence each; most of it before a weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from balora.config.run_config import RunConfig
from balora.data.hub import looks_local, unreachable
from balora.errors import BALoraError, suggest

_KNOWN = {
    "generation": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "regression": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
CONVERT = (
    "Convert them once (AutoModel.from_pretrained(...).save_pretrained(...) writes safetensors), or, if you trust "
    "their source, set allow_pickle: true."
)
"""The two ways on from weights in pickle form."""


def model_problems(settings: RunConfig) -> list[str]:
    """What is wrong with the model that a config names, found without loading weights (for ``balora validate``).

    Returns:
        Sentences; none for a local model that can be loaded, nor for a hub id, which is only known once asked for.
    """
    if not looks_local(settings.model):
        return []
    folder = Path(settings.model).expanduser()
    if not folder.is_dir():
        return [no_folder(settings.model)]
    try:
        config = load_config(settings)
    except BALoraError as error:
        return [str(error)]
    return [problem for problem in (_kind_problem(config, settings), _weights_problem(folder, settings)) if problem]


def no_folder(name: str, key: str = "model") -> str:
    """What to say of a local name under which there is no folder."""
    folder = Path(name).expanduser()
    what = f"The model folder {name}" if key == "model" else f"The folder {name} ({key})"
    if folder.is_file():
        return f"{what} is a file; give the folder it is in."
    siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
    return f"{what} does not exist.{suggest(folder.name, siblings)}"


def load_config(settings: RunConfig) -> PretrainedConfig:
    """Load the model's config.json.

    Raises:
        BALoraError: It is missing, is not JSON, cannot be reached, or needs code of its own.
    """
    name, local = settings.model, looks_local(settings.model)
    if local and not (Path(name).expanduser() / "config.json").is_file():
        folder, hint = Path(name).expanduser(), ""
        if (folder / "adapter_config.json").is_file():
            hint = " It holds an adapter: give the model the adapter was made for."
        elif (folder / "run.json").is_file():
            hint = " It holds a run: give the model that was trained, or what `balora export --to merged` makes of the run."
        raise BALoraError(f"The model folder {name} has no config.json, so it is not a transformers model.{hint}")
    try:
        return AutoConfig.from_pretrained(
            place(name), revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise said(error, "model", name, "model") from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, target: bool = False) -> None:
    """Make sure that the model knows every token the tokenizer can make.

    Args:
        model: A loaded model.
        tokenizer: Its tokenizer.
        target: Whether the tokenizer is for responses, so that the model's output head counts.

    Raises:
        BALoraError: The model's vocabulary is smaller; both sizes are named.
    """
    matrix = model.get_output_embeddings() if target else model.get_input_embeddings()
    known = int(matrix.weight.shape[0])  # type: ignore[union-attr, index]
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > known:
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} has {needed:,} tokens and the model {model.name_or_path} knows "
            f"{known:,}; take the tokenizer that belongs to the model."
        )


def check_complete(model: PreTrainedModel, report: Mapping[str, Any], settings: RunConfig) -> None:
    """Refuse a model of which transformers made part anew, other than a classification head."""
    fresh = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if settings.task in ("classification", "regression"):
        base = f"{model.base_model_prefix}."
        fresh = [key for key in fresh if key.startswith(base) and "pooler" not in key]
    if fresh:
        raise BALoraError(
            f"The weights of {settings.model} do not fill a {type(model).__name__}: {len(fresh)} tensors would be "
            f"random, such as {fresh[0]}. Is its config.json that of these weights, and the task one it was made for?"
        )


def said(error: Exception, key: str, name: str, what: str) -> BALoraError:
    """One sentence for what transformers raised."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text or "custom code" in text:
        return BALoraError(
            f"The {what} of {name} needs code that comes with it. If you have read that code and trust it, set "
            "trust_remote_code: true; otherwise choose a model that transformers knows."
        )
    if not looks_local(name):
        if unreachable(error):
            return BALoraError(
                f"{name} ({key}) is no local folder, and as a hub id it could not be reached; check the connection, or "
                "give a local folder."
            )
        if "gated" in text or "not a valid model identifier" in text:
            return BALoraError(
                f"There is no {what} {name} ({key}), neither here nor on the hub, or you have no access to it; for a "
                "private or gated one, ask for access and log in (hf auth login)."
            )
    reason = ". ".join(text.split(". ")[:2])[:300].rstrip(".") or type(error).__name__
    return BALoraError(f"The {what} of {name} ({key}) cannot be loaded: {reason}.")


def place(name: str) -> str:
    """A folder with its ``~`` resolved, a hub id as it is."""
    return str(Path(name).expanduser()) if looks_local(name) else name


def _kind_problem(config: PretrainedConfig, settings: RunConfig) -> str | None:
    """Whether a kind of model can do the task at all."""
    kind, task, name = config.model_type, settings.task, settings.model
    if settings.trust_remote_code and getattr(config, "auto_map", None):
        return None  # only its own code knows
    can = [other for other, kinds in _KNOWN.items() if kind in kinds]
    if task == "generation" and config.is_encoder_decoder:
        return f"{name} is an encoder-decoder model ({kind}); use task: seq2seq."
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task == "generation" and masked and not getattr(config, "is_decoder", False):
        return f"{name} is an encoder ({kind}), which does not generate text; use task: classification or regression."
    if kind not in _KNOWN[task]:
        return (
            f"{name} is a {kind} model, which cannot do task {task}; it can do {', '.join(can) or 'none of the tasks'}."
        )
    return None


def _weights_problem(folder: Path, settings: RunConfig) -> str | None:
    """Whether a folder's weights are there, whole and in safetensors form."""
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    if not files and index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            return f"{index} is broken ({type(error).__name__}); copy or download it again."
    if not files:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if not pickles:
            return f"The model folder {settings.model} has no weights (model.safetensors)."
        if settings.allow_pickle:
            return None
        form = f"in pickle form ({pickles[0]}), which can run any code on loading"
        return f"The weights of {settings.model} are {form}. {CONVERT}"
    for file in files:
        if not file.is_file():
            return f"The weights of {settings.model} are incomplete: {file.name} is missing; copy or download it again."
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"The weights file {file} is damaged ({error}); copy or download it again."
    return None

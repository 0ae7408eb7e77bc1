"""Checks of a model directory's files before transformers reads them, and names for directories of other kinds."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from balora.errors import BALoraError, shown
from balora.files import read_json

AGAIN = "Copy or download it again."
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
_LAYER = re.compile(r"\.\d+\.")
_INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_CACHE = re.compile(r"(models|datasets)--(.+)")
_ORIGINAL = (
    "Training needs the transformers version of the model: a folder with config.json and safetensors, or its hub id."
)
# Files of models in other forms: pattern, and what the directory holds.
GGUF = f"with weights in GGUF form, which llama.cpp runs and no trainer reads. {_ORIGINAL}"
_OTHER_FORMS = (
    ("*.gguf", GGUF.removeprefix("with ")),
    ("*.onnx", f"a model in ONNX form. {_ORIGINAL}"),
    ("onnx/*.onnx", f"a model in ONNX form. {_ORIGINAL}"),
    ("consolidated.*", f"a model in Meta's or Mistral's own form (consolidated weights). {_ORIGINAL}"),
    ("tf_model.h5", f"a TensorFlow model. {_ORIGINAL}"),
    ("*.ckpt*", f"a TensorFlow or Lightning checkpoint. {_ORIGINAL}"),
    ("flax_model.msgpack", f"a Flax model. {_ORIGINAL}"),
    (
        "modules.json",
        "a sentence-transformers model. Give the transformers model inside it, usually its folder 0_Transformer.",
    ),
    ("model_index.json", "a diffusers pipeline, which is no language model."),
    ("adapter_config.json", "an adapter. Give the model the adapter was made for."),
    ("run.json", "a run. Give the model that was trained, or what `balora export --to merged` makes of the run."),
)


def describe_file(path: Path) -> str:
    """Say what to give in place of a file."""
    if path.suffix.lower() == ".gguf":
        return f"is a file {GGUF}"
    return "is a file. Give the folder it is in."


def describe_directory(directory: Path) -> str:
    """Say what a directory without config.json holds, and what to give instead; the empty text if that is unknown."""
    commits = _snapshots(directory)
    cache = _CACHE.fullmatch(directory.name) or _CACHE.fullmatch(directory.parent.name)
    if cache is not None:
        given = f"model: {cache[2].replace('--', '/')}" if cache[1] == "models" else "it in data.train"
        folders = f", or the folder of a commit: {', '.join(map(str, commits[:3]))}" if commits else ""
        return f" It is a folder of the hub's cache. Give {given}{folders}."
    inside = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if not inside:
        return " It is empty."
    cached = [
        found[2].replace("--", "/") for name in inside if (found := _CACHE.fullmatch(name)) and found[1] == "models"
    ]
    if cached:
        return f" It is the hub's cache. Give a hub id such as {cached[0]}."
    for pattern, what in _OTHER_FORMS:
        if any(directory.glob(pattern)):
            return f" It holds {what}"
    below = [path.parent for path in directory.glob("*/config.json")]
    if below:
        return f" Its folder {max(below, key=_number)} has one; give that."
    return ""


def _snapshots(directory: Path) -> list[Path]:
    """Return the directories of the commits in a directory of the hub's cache, or above it."""
    return sorted(
        (path for path in (directory / "snapshots").glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime
    )[::-1] or (sorted(path for path in directory.glob("*") if path.is_dir()) if directory.name == "snapshots" else [])


def _number(path: Path) -> tuple[int, str]:
    """Return the sort key of a directory: the number at the end of its name, so that checkpoint-20 is after checkpoint-9."""
    digits = re.search(r"(\d+)$", path.name)
    return (int(digits[1]) if digits else -1, path.name)


def json_problem(path: Path) -> str | None:
    """Return why a JSON file of a model cannot be read, or None; a file that does not exist is no problem here."""
    if not path.exists():
        return None
    if path.is_dir():
        return f"{path} is a folder, and must be a file. {AGAIN}"
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            return lfs_problem(path)
    if path.name == "tokenizer.json" and path.stat().st_size:
        return None  # large, and read once by its own library
    try:
        read_json(path, AGAIN)
    except BALoraError as error:
        return str(error)
    return None


def config_problem(path: Path) -> str | None:
    """Return what is wrong with a config.json that transformers would not say, or None."""
    problem = json_problem(path)
    if problem:
        return problem
    values = read_json(path)
    kind, classes, layers = (values.get(key) for key in ("model_type", "architectures", "num_hidden_layers"))
    if kind is None and not values.get("auto_map"):
        return f"{path} has no model_type, so it is not the config of a transformers model. {AGAIN}"
    if kind is not None and not isinstance(kind, str):
        return f"model_type in {path} must be text, not {shown(kind)}. {AGAIN}"
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        return f"architectures in {path} must be a list of names, not {shown(classes)}. {AGAIN}"
    if isinstance(layers, int) and layers < 1:
        return f"num_hidden_layers in {path} must be at least 1, not {layers}. {AGAIN}"
    return None


def lfs_problem(path: Path) -> str:
    """Say that a file is the pointer that git leaves in place of a large file."""
    return f"{path} is only a pointer of git LFS, not the file. Run `git lfs pull` there, or download the model again."


def tokenizer_problem(directory: Path) -> str | None:
    """Return why the JSON files of a tokenizer cannot be read, or None."""
    return next((problem for name in TOKENIZER_FILES if (problem := json_problem(directory / name))), None)


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory, which may be missing; the empty list if it has none.

    Raises:
        BALoraError: The index of the files is damaged.
    """
    single, index = directory / "model.safetensors", directory / _INDEX
    if single.is_dir():
        raise BALoraError(f"{single} is a folder, and must be a file. {AGAIN}")
    if single.is_file() or not index.exists():
        return [single] if single.is_file() else []
    problem = json_problem(index)
    if problem:
        raise BALoraError(problem)
    found = read_json(index).get("weight_map")
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found.values()):
        raise BALoraError(
            f"{index} is damaged: its weight_map must give a file for each tensor, not {shown(found)}. {AGAIN}"
        )
    for name in found.values():
        if Path(name).name != name or name in ("", ".", ".."):
            raise BALoraError(f"{index} names {shown(name)}, which is not a file in its folder. {AGAIN}")
    return [directory / name for name in sorted(set(found.values()))]


def weights_problem(files: list[Path], name: str) -> str | None:
    """Return why safetensors files cannot be loaded (missing, damaged, incomplete), or None. No weight is read."""
    stored: set[str] = set()
    for file in files:
        if not file.is_file():
            return f"The weights of {name} are incomplete: {file.name} is missing. {AGAIN}"
        with file.open("rb") as start:
            if start.read(len(_LFS)) == _LFS:
                return lfs_problem(file)
        try:
            with safe_open(file, framework="pt") as opened:
                keys = set(opened.keys())
        except (SafetensorError, OSError) as error:
            return f"The weights file {file} is damaged ({error}). {AGAIN}"
        stored |= keys
    if files and not stored:
        return f"The weights file {files[0]} has no tensors. {AGAIN}"
    index = files[0].parent / _INDEX if files else None
    if index is not None and files[0].name != "model.safetensors" and index.is_file():
        listed = read_json(index)["weight_map"]
        missing = sorted(set(listed) - stored)
        if missing:
            return f"The weights of {name} are incomplete: {listed[missing[0]]} has no {missing[0]}. {AGAIN}"
    return None


def layers_problem(config: Any, files: list[Path], name: str) -> str | None:
    """Return that a config asks for more layers than there are stored tensors, or None: building them would take for ever."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int) or isinstance(layers, bool):
        return None
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            count += len(opened.keys())
    if layers > max(count, 1):
        return (
            f"The config.json of {name} asks for {layers:,} layers (num_hidden_layers), and its weights have {count:,} tensors. "
            "Check that both belong together."
        )
    return None


def quantization_problem(config: Any, files: list[Path], name: str) -> str | None:
    """Return that a config names a quantization which the stored tensors do not have, or None.

    On a CPU such a model fails at its first forward; on a GPU transformers would quantize it without a word.
    """
    given = getattr(config, "quantization_config", None)
    given = given if isinstance(given, dict | None) else given.to_dict()
    method = str((given or {}).get("quant_method", "bitsandbytes"))
    eight = bool(given and given.get("load_in_8bit"))
    marks = {"bitsandbytes": ".SCB" if eight else ".quant_state.", "gptq": ".qweight", "awq": ".qweight"}
    if not given or method not in marks:
        return None
    for file in files:
        with safe_open(file, framework="pt") as opened:
            if any(marks[method] in key for key in opened.keys()):  # noqa: SIM118
                return None
    return (
        f"The config.json of {name} says that its weights are quantized ({method}), and they are not. Remove quantization_config "
        "from it; method.bits quantizes weights on loading."
    )


def unused_layers(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Return the stored tensors without a place in the model that belong to a layer like one of its own, with another number."""
    own = {_without_numbers(name) for name, _ in model.named_parameters()}
    return [name for name in unexpected if _LAYER.search(name) and _without_numbers(name) in own]


def _without_numbers(name: str) -> str:
    return _LAYER.sub(".", name)


def refuse_nonfinite_weights(model: nn.Module, name: str) -> None:
    """Refuse a model with NaN or infinite weights: every loss would be NaN.

    The weights are read once, without a copy. Weights in 8 bits or fewer have no such values.
    """
    for key, parameter in _named_weights(model):
        problem = nonfinite_weights_problem(*torch.aminmax(parameter.detach()), key, name)
        if problem:
            raise BALoraError(problem)


def nonfinite_weights_problem(low: torch.Tensor, high: torch.Tensor, key: str, name: str) -> str | None:
    """Return the message about a tensor whose smallest or largest value is NaN or infinite, or None."""
    smallest, largest = float(low), float(high)
    if math.isfinite(smallest) and math.isfinite(largest):
        return None
    what = "NaN" if math.isnan(smallest) or math.isnan(largest) else "infinite values"
    hint = f" The file is damaged, or the training that wrote it diverged. {AGAIN}"
    if what != "NaN" and low.dtype == torch.float16:
        hint = " Numbers above 65,504 do not fit into float16: set dtype: bfloat16 or float32, or get other weights."
    return f"The weights of {name} contain {what} in {key}, so every loss would be NaN.{hint}"


def _named_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that can be NaN or infinite."""
    for name, parameter in model.named_parameters():
        if (
            parameter.is_floating_point()
            and parameter.dtype.itemsize > 1
            and parameter.numel()
            and not parameter.is_meta
        ):
            yield name, parameter

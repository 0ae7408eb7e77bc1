"""Checkpoints that are whole or not there: sealed with a manifest, renamed into place, checked before use.

Beside what the Trainer writes, a checkpoint holds where the run came from: the trainable tensors' initial values, and a
fingerprint of the frozen weights. A resume onto other weights is refused (METHOD 6.12).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.files import read_json
from balora.methods.fingerprint import Fingerprint, fingerprint, first_mismatch
from balora.methods.initial_state import initial_state_of, stored_parameters
from balora.methods.layers.peft_lora import adapted_names
from balora.methods.quantization.quantize import dequantized_parameters
from balora.methods.registry import find_method
from balora.models.classifier_head import HEAD_NAMES

MANIFEST = "manifest.json"
ORIGIN = "origin.json"
INITIAL = "initial.safetensors"
TRAINED = "trained.safetensors"
"""What a method of form ``tensors`` trained."""
METHOD_STATE = "method_state.safetensors"
"""What a method keeps beside tensors and optimizer (AdaLoRA's importance scores)."""
RESULT = (ORIGIN, INITIAL, TRAINED, SAFETENSORS_WEIGHTS_NAME, "model*.safetensors")
"""What `balora.load` takes the trained weights and their start from."""
STAGING = ".saving"
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream", "write")
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run started from."""

    initial: dict[str, Tensor]
    """The trainable tensors' initial values by parameter name."""
    frozen: Fingerprint
    """Of the weights that do not learn, as the adapter's start left them."""
    facts: dict[str, Any]
    """Method, seed and the like."""


def origin_of(model: nn.Module, initial: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> Origin:
    """Where an adapted model came from.

    Initial values that a fresh load of the pre-trained model gives back (full fine-tuning) are fingerprinted, not kept.

    Args:
        model: The adapted model, its frozen weights as the start left them.
        initial: The trainable tensors' initial values.
        facts: To be written beside them; the start's method and seed are added.
    """
    kept = {name: value for name, value in initial.items() if not reloadable(model, name)}
    kept |= {name: p.detach() for name, p in stored_parameters(model) if name not in initial}  # never moved
    return Origin(
        initial=kept, frozen=unkept_fingerprint(model, initial), facts={**start_facts(model), **(facts or {})}
    )


def unkept_fingerprint(model: nn.Module, initial: Mapping[str, Tensor]) -> Fingerprint:
    """Fingerprint of the pre-trained weights under an adapted model: the frozen ones, and initial values not kept.

    The heads that peft keeps under the trained copies are left out: they are random, and never run.
    """
    frozen = (
        (name, p)
        for name, p in dequantized_parameters(model)
        if not p.requires_grad and ".original_module." not in name
    )
    return fingerprint(itertools.chain(frozen, ((n, v) for n, v in initial.items() if reloadable(model, n))))


def reloadable(model: nn.Module, name: str) -> bool:
    """Whether a trainable tensor's initial value comes back with the pre-trained model: not an adapter's, not a new head's."""
    return form_of(model) == "model" and name.split(".")[0] not in HEAD_NAMES


def start_facts(model: nn.Module) -> dict[str, Any]:
    """What building the adapter again takes: the method, what it was told, and what it adapted."""
    start = initial_state_of(model)
    return {**start.to_dict(), "targets": adapted_names(model)} if start else {}


def form_of(model: nn.Module) -> str:
    """What a trained model consists of, as `Method.form` has it."""
    start = initial_state_of(model)
    if start is not None:
        return find_method(start.method).form
    return "lora" if isinstance(model, PeftModel) else "model"


def write_origin(folder: Path, origin: Origin) -> None:
    """Write the initial values, the fingerprint and the facts into a folder."""
    write_tensors(origin.initial, folder / INITIAL)
    (folder / ORIGIN).write_text(json.dumps({"frozen": origin.frozen, **origin.facts}, indent=1))


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, from whatever device, as a safetensors file."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def read_origin(folder: Path) -> Origin:
    """Read them back.

    Raises:
        BALoraError: A file is missing or damaged.
    """
    facts = _read(folder / ORIGIN)
    return Origin(initial=read_tensors(folder / INITIAL), frozen=facts.pop("frozen"), facts=facts)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file.

    Raises:
        BALoraError: It is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BALoraError(
            f"{path} is missing or damaged ({error}). Delete its folder to go on from an earlier one."
        ) from error


def read_trained(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors that the Trainer saved, by the model's parameter names.

    Raises:
        BALoraError: The weights are missing or damaged.
    """
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    if form_of(model) == "tensors":
        return read_tensors(folder / TRAINED)
    if not isinstance(model, PeftModel):
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            raise BALoraError(f"{folder} holds no model.safetensors. Delete it to go on from an earlier checkpoint.")
        tensors = {name: value for file in files for name, value in read_tensors(file).items()}
        return {name: value for name, value in tensors.items() if name in names}
    saved = read_tensors(folder / SAFETENSORS_WEIGHTS_NAME)
    # peft drops the adapter's name from the keys; ask it for its own key of every tensor instead of guessing the rule.
    state = dict(model.named_parameters())
    keys = {id(value): key for key, value in get_peft_model_state_dict(model, state_dict=state).items()}
    return {name: saved[keys[id(state[name])]] for name in names if keys.get(id(state[name])) in saved}


def check_origin(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    origin: Origin,
    where: Path,
    frozen: Fingerprint | None = None,
) -> None:
    """Refuse a model that does not stand where the run started: other frozen weights, or other initial values.

    Args:
        model: The adapted model.
        initial: The trainable tensors' initial values.
        origin: Where the run started.
        where: The folder that says so, for the sentence.
        frozen: `unkept_fingerprint`, if it was taken before; of a model that has been sharded since it cannot be.

    Raises:
        BALoraError: They differ; the first tensor is named.
    """
    wrong = first_mismatch(frozen or unkept_fingerprint(model, initial), origin.frozen) or first_mismatch(
        fingerprint((n, v) for n, v in initial.items() if not reloadable(model, n)),
        fingerprint((n, v) for n, v in origin.initial.items() if n not in origin.frozen),
    )
    if wrong is not None:
        raise BALoraError(
            f"{where} was trained on other weights than these: {wrong} differs. Use the same pre-trained model and method "
            "settings as the run did, or start a new run in another folder."
        )


def seal(folder: Path, patterns: Iterable[str] = ("**/*",)) -> None:
    """List every file with its size and hash, and push all of it to the disk.

    Args:
        folder: Written to its end.
        patterns: Of the files to list; `RESULT` where others may come and go beside them.
    """
    found = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.name != MANIFEST})
    files = {p.relative_to(folder).as_posix(): [p.stat().st_size, _digest(p)] for p in found if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    for path in (*found, folder / MANIFEST, folder):
        _sync(path)


def verify(folder: Path) -> None:
    """Check a sealed folder against its manifest.

    Raises:
        BALoraError: A file is missing or not as it was written; it is named.
    """
    for name, (size, digest) in _read(folder / MANIFEST).items():
        path = folder / name
        if not path.is_file():
            raise BALoraError(f"{path} is missing. Delete {folder} to resume from the checkpoint before it.")
        if path.stat().st_size != size or _digest(path) != digest:
            raise BALoraError(
                f"{path} is not as it was written. Delete {folder} to resume from the checkpoint before it."
            )


def newest(run: Path) -> Path | None:
    """The checkpoint with the highest step in a run's folder, None when there is none."""
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return max(found)[1] if found else None


@contextlib.contextmanager
def staged(run: Path, *, main: bool = True, wait: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A folder beside the checkpoints to write into; what is left in it at the end is sealed and moved into place.

    Args:
        run: The folder of the checkpoints.
        main: Whether this process cleans, seals and moves; of several that write together, one does.
        wait: Returns when every process has called it.

    Raises:
        BALoraError: Writing failed (a full disk, say). Nothing half-written stays.
    """
    staging = run / STAGING
    if main:
        shutil.rmtree(staging, ignore_errors=True)
    wait()
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
        wait()
        for folder in staging.iterdir() if main else ():
            seal(folder)
            target = run / folder.name
            shutil.rmtree(target, ignore_errors=True)
            os.replace(folder, target)
        wait()
    except BALoraError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        # safetensors reports a full disk as an error of its own, torch as whatever its archive writer tripped over first.
        cut_short = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER)
        if isinstance(error, RuntimeError) and not cut_short:
            raise
        reason = f"torch could not write a file to its end ({error})" if cut_short else str(error)
        last = newest(run)
        rest = f"The last whole checkpoint is {last}" if last else "There is no earlier checkpoint"
        raise BALoraError(
            f"Saving into {run} failed: {reason}. {rest}; free some space and run the same command again to go on."
        ) from error
    finally:
        if main:
            shutil.rmtree(staging, ignore_errors=True)


def discard_staging(run: Path) -> None:
    """Remove what a killed process left half-written."""
    shutil.rmtree(run / STAGING, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, f"So {path.parent} cannot be used. Delete that folder to go on from an earlier one.")

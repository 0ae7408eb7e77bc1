"""Write and read checkpoints. A checkpoint is complete or absent: it is written elsewhere, hashed, and then moved into place.

Besides the Trainer's files, a checkpoint has the initial values of the trainable tensors and a fingerprint of the frozen
weights, so that a resume on other weights is refused (method.md, departure 12).
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from balora.errors import BALoraError, shown
from balora.files import apply_umask, delete, fsync, read_json, write_text
from balora.methods.fingerprint import Fingerprint, fingerprint, first_mismatch
from balora.methods.initial_state import initial_state_of, stored_parameters
from balora.methods.layers.peft_lora import adapted_names
from balora.methods.quantization.quantize import dequantized_parameters
from balora.methods.registry import find_method
from balora.models.classifier_head import HEAD_NAMES

MANIFEST = "manifest.json"
ORIGIN = "origin.json"
"""Fingerprint of the frozen weights, and metadata of the adapter."""
INITIAL = "initial.safetensors"
"""Initial values of the trainable tensors."""
FROZEN = "frozen.safetensors"
"""Frozen tensors that another load of the pre-trained model does not give (a random pooler, a resized embedding)."""
TRAINED = "trained.safetensors"
"""Trained tensors of a method of form ``tensors``."""
METHOD_STATE = "method_state.safetensors"
"""State of a method besides tensors and optimizer (AdaLoRA's importance scores)."""
RESULT_FILES = (ORIGIN, INITIAL, FROZEN, TRAINED, SAFETENSORS_WEIGHTS_NAME, "model*.safetensors")
"""Files that `balora.load` reads the trained weights and their initial values from."""
STAGING = ".saving"
_TORCH_WRITER_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream", "write")
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The weights a run began with: stored where the pre-trained model does not have them, else fingerprinted."""

    values: dict[str, Tensor]
    """Initial values of the trainable tensors by parameter name."""
    frozen: Fingerprint
    """Fingerprint of the weights that are not trained, after the method's initialization."""
    metadata: dict[str, Any]
    """Method, its options, seed, adapted layers and the like: everything that rebuilds the adapter."""
    unstored: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Frozen tensors that another load of the pre-trained model does not give, by parameter name."""


def initial_weights_of(
    model: nn.Module,
    values: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    unstored: Mapping[str, Tensor] | None = None,
) -> InitialWeights:
    """Collect the initial weights of an adapted model from the initial ``values`` of its trainable tensors.

    ``unstored`` are frozen tensors that another load of the pre-trained model does not give.

    Values that a new load of the pre-trained model gives (full fine-tuning) are fingerprinted, not stored.
    """
    state = initial_state_of(model)
    adapter = {**state.to_dict(), "targets": adapted_names(model)} if state else {}
    stored = {name: value for name, value in values.items() if not in_pretrained_model(model, name)}
    # Frozen parameters still have their initial values.
    stored |= {name: p.detach() for name, p in stored_parameters(model) if name not in values}
    frozen = pretrained_fingerprint(model, values)
    return InitialWeights(stored, frozen, {**adapter, **(metadata or {})}, dict(unstored or {}))


def pretrained_fingerprint(model: nn.Module, values: Mapping[str, Tensor]) -> Fingerprint:
    """Return the fingerprint of the frozen weights, and of the initial values that are in the pre-trained model.

    The heads under peft's trained copies are left out: they are random and never run.
    """
    frozen = ((name, p) for name, p in dequantized_parameters(model) if not p.requires_grad)
    used = ((name, p) for name, p in frozen if ".original_module." not in name)
    return fingerprint(itertools.chain(used, ((n, v) for n, v in values.items() if in_pretrained_model(model, n))))


def in_pretrained_model(model: nn.Module, name: str) -> bool:
    """Return whether a trainable tensor is one of the pre-trained model: not one of the adapter or of a new head."""
    return form_of(model) == "model" and name.split(".")[0] not in HEAD_NAMES


def form_of(model: nn.Module) -> str:
    """Return what a trained model consists of, in the terms of `Method.form`."""
    state = initial_state_of(model)
    if state is not None:
        return find_method(state.method).form
    return "lora" if isinstance(model, PeftModel) else "model"


def write_initial_weights(folder: Path, initial: InitialWeights) -> None:
    """Write initial weights into a directory."""
    write_tensors(initial.values, folder / INITIAL)
    (folder / FROZEN).unlink(missing_ok=True)
    if initial.unstored:
        write_tensors(initial.unstored, folder / FROZEN)
    write_text(folder / ORIGIN, json.dumps({"frozen": initial.frozen, **initial.metadata}, indent=1))


def read_initial_weights(folder: Path) -> InitialWeights:
    """Read what `write_initial_weights` wrote; raise `BALoraError` if a file is missing or damaged."""
    metadata = _read(folder / ORIGIN)
    unstored = read_tensors(folder / FROZEN) if (folder / FROZEN).is_file() else {}
    return InitialWeights(read_tensors(folder / INITIAL), metadata.pop("frozen"), metadata, unstored)


def check_initial_weights(
    model: nn.Module,
    values: Mapping[str, Tensor],
    expected: InitialWeights,
    where: Path,
    frozen: Fingerprint | None = None,
) -> None:
    """Refuse an adapted model if its frozen weights or initial ``values`` differ from the ``expected`` ones in ``where``.

    A sharded model cannot be fingerprinted: ``frozen`` is its `pretrained_fingerprint` from before.
    """
    wrong = first_mismatch(frozen or pretrained_fingerprint(model, values), expected.frozen) or first_mismatch(
        fingerprint((n, v) for n, v in values.items() if not in_pretrained_model(model, n)),
        fingerprint((n, v) for n, v in expected.values.items() if n not in expected.frozen),
    )
    if wrong is not None:
        raise BALoraError(
            f"{where} was trained on other weights than these: {wrong} differs. Use the same pre-trained model and method "
            "settings as the run did, or start a new run in another folder."
        )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors from any device as a safetensors file."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file; raise `BALoraError` if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BALoraError(
            f"{path} is missing or damaged ({error}). Delete its folder to resume from an earlier checkpoint."
        ) from error


def read_trained(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read the trained tensors that the Trainer saved, by the model's parameter names."""
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    if form_of(model) == "tensors":
        return read_tensors(folder / TRAINED)
    if not isinstance(model, PeftModel):
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            raise BALoraError(f"{folder} has no model.safetensors. Delete it to resume from an earlier checkpoint.")
        tensors = {name: value for file in files for name, value in read_tensors(file).items()}
        return {name: value for name, value in tensors.items() if name in names}
    saved = read_tensors(folder / SAFETENSORS_WEIGHTS_NAME)
    # peft drops the adapter's name from its keys. This asks peft for the key of every tensor.
    state = dict(model.named_parameters())
    keys = {id(value): key for key, value in get_peft_model_state_dict(model, state_dict=state).items()}
    return {name: saved[keys[id(state[name])]] for name in names if keys.get(id(state[name])) in saved}


def write_manifest(folder: Path, patterns: Iterable[str] = ("**/*",)) -> None:
    """Write size and hash of a directory's files into its manifest, apply the umask, and flush the files to the disk.

    The manifest lists `RESULT_FILES` only (``patterns``) if other files may be added or removed later.
    """
    found = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.name != MANIFEST})
    files = {p.relative_to(folder).as_posix(): [p.stat().st_size, _digest(p)] for p in found if p.is_file()}
    write_text(folder / MANIFEST, json.dumps(files, indent=1))
    apply_umask(*found)
    fsync(*found, folder / MANIFEST, folder)


def check_manifest(folder: Path) -> None:
    """Refuse a directory with a file that is missing or differs from the manifest."""
    for name, entry in _read(folder / MANIFEST).items():
        if not isinstance(entry, list) or len(entry) != 2:
            raise BALoraError(
                f"{folder / MANIFEST} is damaged: {shown(name)} has no size and hash. Delete {folder} to resume from the "
                "checkpoint before it."
            )
        size, digest = entry
        path = folder / name
        if not path.is_file():
            raise BALoraError(f"{path} is missing. Delete {folder} to resume from the checkpoint before it.")
        if path.stat().st_size != size or _digest(path) != digest:
            raise BALoraError(
                f"{path} is not as it was written. Delete {folder} to resume from the checkpoint before it."
            )


def newest_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint with the highest step in a run directory, or None."""
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return max(found)[1] if found else None


@contextlib.contextmanager
def staged(run: Path, *, main: bool = True, wait: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Provide a staging directory, and move each directory that is written there, with a manifest, into the run directory.

    Only the ``main`` process creates, moves and deletes; ``wait`` is a barrier for all processes. Nothing incomplete is left
    if writing fails.
    """
    staging = run / STAGING
    if main:
        discard_staging(run)
    wait()
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
        wait()
        for folder in staging.iterdir() if main else ():
            write_manifest(folder)
            target = run / folder.name
            delete(target)
            os.replace(folder, target)
        wait()
    except (OSError, SafetensorError, RuntimeError) as error:
        # On a full disk safetensors raises its own error, and torch's archive writer a RuntimeError.
        cut_short = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER_ERRORS)
        if isinstance(error, RuntimeError) and not cut_short:
            raise
        reason = f"torch could not write a file to its end ({error})" if cut_short else str(error)
        last = newest_checkpoint(run)
        rest = f"The last complete checkpoint is {last}" if last else "There is no earlier checkpoint"
        raise BALoraError(
            f"Saving into {run} failed: {reason}. {rest}. Free some space and run the same command again to resume."
        ) from error
    finally:
        if main:
            discard_staging(run)


def discard_staging(run: Path) -> None:
    """Delete the incomplete files of a process that was killed."""
    delete(run / STAGING)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, f"So {path.parent} cannot be used. Delete that folder to resume from an earlier checkpoint.")

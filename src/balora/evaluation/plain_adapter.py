"""An adapter in peft's format on a plain model: its head, its classes, its tokenizer, and the size of its vocabulary."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from balora.errors import BALoraError
from balora.exporting.export import CLASSES
from balora.loading.base_weights import load_again
from balora.loading.source import ModelSource
from balora.models.classifier_head import HEAD_NAMES

logger = logging.getLogger("balora")
_PREFIX = "base_model.model."
_WRAPPER = ".modules_to_save."
_WRAPPERS_OF_BASE = (".base_layer.", ".original_module.")
"""peft stores the pre-trained weights of a layer under these, if it stores them."""


def read_adapter_config(directory: Path) -> PeftConfig:
    """Read the ``adapter_config.json`` of an adapter.

    Raises:
        BALoraError: The file is damaged, or names a kind of adapter that the installed peft does not know.
    """
    path = directory / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return PeftConfig.from_pretrained(directory)
    except KeyError as error:
        raise BALoraError(
            f"{path} is for a kind of adapter that the installed peft does not know: {error}. Check peft_type, or update peft."
        ) from error
    except (ValueError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BALoraError(f"{path} cannot be read: {reason}. Copy or download the adapter again.") from error


class PlainAdapter:
    """The directory of an adapter that any program may have written; its weights are not read yet."""

    def __init__(self, directory: Path, *, allow_pickle: bool = False) -> None:
        self.directory = directory
        self.config = read_adapter_config(directory)
        path = directory / SAFETENSORS_WEIGHTS_NAME
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the stored tensors, by the name in the pre-trained model; empty for weights in pickle form."""
        pickled = directory / WEIGHTS_NAME
        if not path.is_file() and not pickled.is_file():
            raise BALoraError(f"{directory} has no {SAFETENSORS_WEIGHTS_NAME}. Copy or download the adapter again.")
        if not path.is_file() and not allow_pickle:
            raise BALoraError(
                f"{directory} has no {SAFETENSORS_WEIGHTS_NAME}. Weights in pickle form can run any code on loading: if you trust "
                "their source, allow them with --allow-pickle."
            )
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  # not a dictionary
                        self.shapes[_own_name(key)] = tuple(file.get_slice(key).get_shape())
            except (SafetensorError, OSError) as error:
                raise BALoraError(f"{path} is damaged ({error}). Copy or download it again.") from error

    def classes(self, base: PretrainedConfig) -> tuple[str, ...] | None:
        """Return the names of the classes (one name for a score), or None if the adapter is not for a classifier.

        ``base`` is the config of the pre-trained model. The adapter's own head decides how many classes there are.
        """
        heads = [
            shape[0]
            for name, shape in self.shapes.items()
            if name.split(".")[0] in HEAD_NAMES
            and name.endswith(".weight")
            and len(shape) == 2
            and ".lora_" not in name
        ]
        has_head = any(name.endswith("ForSequenceClassification") for name in base.architectures or ())
        if not heads and not has_head:
            if self.config.task_type == "SEQ_CLS":
                raise BALoraError(
                    f"{self.directory} is the adapter of a classifier, and neither it nor the model {self._base} has a trained "
                    "head. Save the adapter with its head (modules_to_save in its config)."
                )
            return None
        number = min(heads) if heads else base.num_labels
        names = tuple(str(base.id2label[row]) for row in sorted(base.id2label)) if base.num_labels == number else ()
        path = self.directory / CLASSES
        if path.is_file():
            names = tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
        if len(names) != number:
            names = tuple(f"LABEL_{row}" for row in range(number))
        return names

    def load(self, model: PreTrainedModel, source: ModelSource) -> PeftModel:
        """Put the adapter on its pre-trained model, whose vocabulary is resized if the adapter has other embeddings.

        Raises:
            BALoraError: The adapter does not fit the model, a layer is in neither of them, or a weight is not finite.
        """
        embedding: Any = model.get_input_embeddings()
        name = next((n for n, p in model.named_parameters() if p is embedding.weight), None)
        stored = self.shapes.get(name or "")
        if stored is not None and stored[0] != len(embedding.weight):
            model.resize_token_embeddings(stored[0], mean_resizing=False)
        if type(model).__name__.endswith("ForSequenceClassification"):
            self._check_random_layers(model, source)
        names = {name for name, _ in model.named_parameters()}
        try:
            adapted = PeftModel.from_pretrained(model, self.directory)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BALoraError(
                f"The adapter {self.directory} does not fit the model {self._base}: {reason}. Check base_model_name_or_path in "
                "its adapter_config.json."
            ) from error
        self._check_weights(adapted, names)
        return adapted

    def _check_weights(self, adapted: PeftModel, base_names: set[str]) -> None:
        """Refuse an adapter whose file lacks tensors or has others than the adapted model: peft would leave them out."""
        loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        for key, value in loaded.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise BALoraError(f"The adapter {self.directory} has a weight that is not finite: {_own_name(key)}.")
        if not self.shapes:  # in pickle form
            return
        expected = {_own_name(key) for key in loaded}
        places = expected | base_names
        for problem, keys in (
            ("its file lacks", expected - self.shapes.keys()),
            ("the model has no place for", self.shapes.keys() - places),
        ):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise BALoraError(
                    f"The adapter {self.directory} does not fit the model {self._base}: {problem} {min(keys)}{more}. Copy or "
                    "download the adapter again, or check base_model_name_or_path in its adapter_config.json."
                )

    def _check_random_layers(self, model: PreTrainedModel, source: ModelSource) -> None:
        """Refuse a layer that each load would draw anew, such as the pooler of a DeBERTa: the scores would be random."""
        _, report = load_again(type(model), model.config, source, dtype=model.dtype, resize=False, device_map="meta")
        random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        lost = sorted(random - self.shapes.keys())
        if lost:
            raise BALoraError(
                f"{lost[0]} is neither in the model {self._base} nor in the adapter {self.directory}, so it would be random. "
                "Save the adapter with that layer (modules_to_save in its config), or evaluate the run."
            )

    @property
    def _base(self) -> str:
        return str(self.config.base_model_name_or_path)


def _own_name(key: str) -> str:
    """Return the name that a stored tensor has in the pre-trained model."""
    name = key.removeprefix(_PREFIX)
    for wrapper in _WRAPPERS_OF_BASE:
        name = name.replace(wrapper, ".")
    if _WRAPPER in name:  # older versions of peft kept the adapter's name
        module, _, rest = name.partition(_WRAPPER)
        name = f"{module}.{rest.partition('.')[2] or rest}"
    return name

"""The tuned model and its base: two states of one set of weights for an adapter, else two models one after the other."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import nn

from balora.auditing.options import AuditOptions
from balora.checkpoints.run_directory import read_record
from balora.data.collate import ensure_pad_token
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.options import EvaluationOptions
from balora.loading.head import head_classes
from balora.loading.pretrained import load_target_tokenizer
from balora.loading.source import Location, ModelSource
from balora.loading.trained import SavedModel, load, load_untrained
from balora.methods.initial_state import probe_logits
from balora.models.adapted_model import evaluating
from balora.teacher.pretrained import PretrainedTeacher

SideName = Literal["base", "tuned"]
SIDES: tuple[SideName, SideName] = ("base", "tuned")


class ModelPair:
    """A tuned model and its base, not yet loaded.

    Args:
        tuned: A run directory, a peft adapter, a model directory or a hub id.
        base: The base; default the model that the run or the adapter names. A merged model names none.
        options: Settings of the audit.

    Raises:
        BALoraError: There is nothing of that name, or the base is not known.
    """

    def __init__(self, tuned: str, base: str | None, options: AuditOptions) -> None:
        self.options = EvaluationOptions(
            device=options.device, dtype=options.dtype, allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
        )  # fmt: skip
        self.tuned = ModelUnderTest(tuned, self.options, base=base)
        if self.tuned.is_reference:
            raise BALoraError(
                "reference is not a model. Give a run directory, an adapter, a model's folder or a hub id."
            )
        self.saved: SavedModel | None = self.tuned.saved
        self.given_base = base
        self._loaded: LoadedModel | None = None
        self._teacher: PretrainedTeacher | None = None
        self.notes: list[str] = []
        self.shared = self.tuned.adapter is not None or (self.saved is not None and self.saved.method.form != "model")
        """True if one set of weights is both models."""
        if self.tuned.adapter is not None:
            config = PeftConfig.from_pretrained(self.tuned.adapter)
            if config.is_prompt_learning:
                kind = str(config.peft_type).rpartition(".")[2]
                raise BALoraError(
                    f"{tuned} is a {kind} adapter, which adds tokens; only adapters of weights can be audited."
                )
            if base is not None:
                self.tuned.base = Location(base)
            if self.tuned.base.missing:
                raise BALoraError(
                    f"The base model that {tuned} names, {self.tuned.base.name}, does not exist here. Name its place with --base."
                )
        elif self.saved is None and base is None:
            raise BALoraError(
                f"{tuned} does not say which model it was made from. Name its base: --base MODEL (a folder or hub id)."
            )

    @functools.cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the tuned model's classes; None if it is no classifier."""
        return self.tuned.classes

    @functools.cached_property
    def other_classes(self) -> str | None:
        """Why the two models' predictions of classes cannot be compared; None if they can, or if there are no classes."""
        if self.classes is None or len(self.classes) < 2:
            return None
        source = self.saved.source() if self.saved is not None else ModelSource(model=Location(self.base_name))
        if self.given_base is not None:
            source = source.with_model(self.given_base)
        own = head_classes(dataclasses.replace(source, task="classification"))
        if own is None:
            return "the base has no trained head for classes, so its predictions would be random"
        if len(own) != len(self.classes):
            return f"the base's head has {len(own)} classes, and the tuned model's {len(self.classes)}"
        if own != self.classes and not any(_are_placeholders(names) for names in (own, self.classes)):
            return f"the base's classes are {', '.join(own)}, and the tuned model's {', '.join(self.classes)}"
        return None

    @property
    def base_name(self) -> str:
        """Name of the base."""
        if self.given_base is not None:
            return self.given_base
        if self.tuned.adapter is not None:
            return self.tuned.base.name
        assert self.saved is not None
        return self.saved.source().model.name

    def identity(self) -> dict[str, Any]:
        """Return digests of both models' weights. It takes as long as reading them."""
        base: dict[str, Any] = {"name": self.base_name}
        if self.saved is None:
            base = ModelUnderTest(self.base_name, self.options).identity
        return {"base": base, "tuned": self.tuned.identity}

    @contextlib.contextmanager
    def side(self, name: SideName) -> Iterator[LoadedModel]:
        """Load one of the models, in eval mode without gradients. It is freed after the block unless both share weights."""
        if self.shared and self._loaded is None:
            self._loaded = self._load_shared()  # may find that the weights cannot be shared
        if self.shared:
            assert self._loaded is not None
            with self._state(self._loaded.model, name):
                yield self._loaded
            return
        loaded = self._load(name)
        try:
            with evaluating(loaded.model):
                yield loaded
        finally:
            del loaded
            _free()

    def close(self) -> None:
        """Free the models."""
        self._loaded = self._teacher = None
        _free()

    @contextlib.contextmanager
    def _state(self, model: nn.Module, name: SideName) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if name == "base":
                if self._teacher is not None:
                    stack.enter_context(self._teacher.active())
                else:
                    stack.enter_context(model.disable_adapter())  # type: ignore[operator]
            stack.enter_context(evaluating(model))
            yield

    def _load_shared(self) -> LoadedModel | None:
        if self.saved is not None:
            loaded = self._load_run(self.saved, tuned=True)
            self._teacher = PretrainedTeacher(loaded.model, initial=self.saved.initial.values)
            return loaded
        assert self.tuned.adapter is not None
        before: list[torch.Tensor | None] = []
        with torch.no_grad():
            loaded = self.tuned.load(self.options.device, inspect=lambda model: before.append(probe_logits(model)))
            with loaded.model.disable_adapter():  # type: ignore[operator]
                after = probe_logits(loaded.model)
        if after is not None and before[0] is not None and torch.equal(before[0].to(after.device), after):
            return loaded
        # Adapters such as PiSSA change the weights under them: without the adapter these are another model.
        self.shared = False
        self.notes.append(
            "The adapter's method changes the weights under it, so base and tuned model were loaded one after the other."
        )
        del loaded
        _free()
        return None

    def _load(self, name: SideName) -> LoadedModel:
        if self.saved is not None:
            return self._load_run(self.saved, tuned=name == "tuned")
        if name == "base":
            return self._load_base(self.base_name)
        return self.tuned.load(self.options.device)

    def _load_base(self, name: str) -> LoadedModel:
        found = ModelUnderTest(name, self.options)
        if found.saved is not None or found.adapter is not None:
            raise BALoraError(
                f"The base {name} is itself a run or an adapter. Give a plain model: `balora export --to merged`."
            )
        if found.classes is not None and self.classes is None:
            raise BALoraError(
                f"The base {name} is a classifier, and {self.tuned.name} is not, so they cannot be compared. Give the base "
                "that was fine-tuned (--base)."
            )
        return found.load(self.options.device, new_head=self.classes)

    def _load_run(self, saved: SavedModel, *, tuned: bool) -> LoadedModel:
        model = (load if tuned else load_untrained)(saved.folder, base=self.given_base)
        if self.options.dtype not in (None, "auto"):
            model = model.to(getattr(torch, str(self.options.dtype)))
        model.to(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        tokenizer = saved.tokenizer()
        if tokenizer is None:
            raise BALoraError(f"{saved.folder} has no tokenizer beside it. Audit the run's folder instead.")
        ensure_pad_token(tokenizer)
        target = None if saved.config is None else load_target_tokenizer(ModelSource.from_config(saved.config))
        return LoadedModel(model, tokenizer, saved.task, saved.labels, target)

    def describe(self) -> dict[str, Any]:
        """Return method and training data of a run, for the report; nothing for other models."""
        if self.saved is None:
            return {}
        record = (read_record(self.saved.run) or {}) if self.saved.run is not None else {}
        values = {"method": self.saved.method.name, "task": self.saved.task, "status": record.get("status")}
        return copy.deepcopy({key: value for key, value in values.items() if value})


def _are_placeholders(names: tuple[str, ...]) -> bool:
    """Return whether nobody named the classes: transformers calls them LABEL_0, LABEL_1, ..."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""The sections of a config that say which examples to learn from and which parameters learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from balora.config.data_columns import Form, form_of
from balora.config.perturbations import check_duplicate, check_imbalance, check_subsample
from balora.config.validation import Problems
from balora.errors import suggest
from balora.methods import METHODS
from balora.methods.registry import option_problems


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _check_eval(value: Any) -> float | str | None:
    """A share strictly between 0 and 1, a split or file, or nothing (also written false)."""
    if value is None or value is False:
        return None
    try:
        share = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and value.strip():
            return value
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(f"is a share between 0 and 1, a split or a file, not {value!r}")
    return share


Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]


class Section(BaseModel):
    """Frozen, and every key it does not know is an error. A key left empty in the file means its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {str(key): value for key, value in values.items() if value is not None}
        return values


class FurtherData(Section):
    """Another source of training rows: what is not given is as in the ``data`` section around it."""

    train: str
    name: str | None = None
    split: str | None = None
    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    messages: str | None = None
    text: str | tuple[str, ...] | None = None
    label: str | None = None
    score: str | None = None


class DataConfig(Section):
    """Where the examples are and which columns hold what."""

    train: str = Field(description="a hub id, a .jsonl, .json, .csv, .tsv or .parquet file, or a folder of such files")
    name: str | None = Field(default=None, description="the hub dataset's configuration, such as main or sst2")
    split: str | None = Field(default=None, description="which rows to train on, such as train[:8000]; default train")
    also: tuple[FurtherData, ...] | None = Field(
        default=None,
        description="further training data: a list of sections with train, and name, split and the columns that differ",
    )
    eval: Annotated[float | str | None, PlainValidator(_check_eval)] = Field(
        default=None, description="rows to evaluate on: a share of the rows of train (0.01), a split, or a file"
    )
    prompt: str | None = Field(
        default=None, description="column of the prompt; conversations[0].value reaches into one"
    )
    response: str | None = Field(default=None, description="column of the response, the only part that is learnt")
    input: str | None = Field(default=None, description="column of further input, for a template with a place for it")
    messages: str | None = Field(default=None, description="column of conversations, lists of role and content")
    text: str | tuple[str, ...] | None = Field(
        default=None, description="column of plain text; with a label or score one column or a pair of them"
    )
    label: str | None = Field(default=None, description="column of the class, a name or a number")
    labels: tuple[str, ...] | None = Field(
        default=None,
        description="names of the classes in the order of their numbers; default those of the training rows, sorted",
    )
    score: str | None = Field(default=None, description="column of the number to predict")
    prompt_template: str = Field(
        default="none",
        description="none, alpaca, or your own text with {prompt} in it; with text in place of prompt, {text} and {text_pair}",
    )
    separator: str | None = Field(
        default=None,
        description="what stands between prompt and response; default a new line, and nothing after your own template",
    )
    max_length: Whole = Field(
        default=512, ge=2, description="most tokens of an example; what is beyond them is cut off"
    )
    max_target_length: Whole | None = Field(
        default=None, ge=1, description="seq2seq: most tokens of a response; default max_length"
    )
    target_tokenizer: str | None = Field(
        default=None, description="seq2seq: tokenizer of the responses, where it is another one"
    )
    subsample: Annotated[float | int | None, PlainValidator(check_subsample)] = Field(
        default=None, description="learn from so many of the training rows, drawn by the seed: a share or a number"
    )
    imbalance: Annotated[dict[str, float] | None, PlainValidator(check_imbalance)] = Field(
        default=None, description="classification: by class, the share of its training rows to keep"
    )
    label_noise: Number = Field(
        default=0.0, ge=0, le=1, description="share of the training rows whose label is made wrong"
    )
    duplicate: Annotated[dict[str, Any] | None, PlainValidator(check_duplicate)] = Field(
        default=None, description="share of the training rows that occur twice, such as 0.2; or {share: 0.2, times: 5}"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _label_names(cls, values: Any) -> Any:
        if isinstance(values, list | tuple):
            values = [str(value) if isinstance(value, int | float) else value for value in values]
            if len(values) < 2 or len(set(map(str, values))) < len(values):
                raise ValueError(f"must name at least two classes, each once, not {values!r}")
        return values

    @property
    def sources(self) -> tuple[DataConfig, ...]:
        """A section for each source of training rows: this one, then those under ``also``."""
        alone: dict[str, Any] = {"also": None, "name": None, "split": None, "eval": None}
        further = [entry.model_dump(exclude_none=True) for entry in self.also or ()]
        return (self, *(self.model_copy(update={**alone, **entry}) for entry in further))

    @property
    def form(self) -> Form:
        """Which kind of example the named columns make."""
        return form_of(self.model_dump())


class MethodConfig(Section):
    """Which fine-tuning method, and its size. A method's own options may stand here by their names."""

    name: str = Field(default="balora", description="a name from `balora methods`")
    rank: Whole = Field(default=8, ge=1, description="the adapter's rank r")
    alpha: Number | None = Field(
        default=None, gt=0, validate_default=True, description="the scaling is alpha / rank; default the rank"
    )
    dropout: Number = Field(default=0.0, ge=0, lt=1, description="probability on the adapter's input")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        min_length=1,
        description="all-linear, a regular expression over whole names, or a list of layer names",
    )
    options: dict[str, Any] = Field(default={}, validate_default=True, description="the method's own options")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        """Move methods' own options, written beside the common keys, to where they are kept and checked."""
        if not isinstance(values, Mapping) or not isinstance(values.get("options", {}), Mapping):
            return values
        options = {key for spec in METHODS.values() for key in spec.options}
        own = [key for key in values if key in options and key not in cls.model_fields]
        if not own:
            return values
        kept = {key: value for key, value in values.items() if key not in own}
        given = {key: values[key] for key in own if values[key] is not None}  # left empty: the default
        return {**kept, "options": {**kept.get("options", {}), **given}}

    @field_validator("name")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"is one of {', '.join(METHODS)}, not {name!r}.{suggest(name, METHODS)}")
        return name

    @field_validator("alpha")
    @classmethod
    def _alpha_from_rank(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        return info.data.get("rank") if alpha is None else alpha

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")
        if name is None:
            return options
        problems = option_problems(METHODS[name], options)
        if problems:
            raise Problems(problems)
        return options

    def adapt_options(self) -> dict[str, Any]:
        """The method's own options, as `balora.adapt` takes them."""
        return dict(self.options)

"""The ``data`` and ``method`` sections of a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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

from balora.config.data_columns import (
    LARGEST,
    Form,
    check_duplicate,
    check_imbalance,
    check_packing,
    check_roles,
    check_subsample,
    form_of,
)
from balora.config.validation import Problems
from balora.errors import shown, suggest
from balora.methods.registry import METHODS, option_problems


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _check_eval(value: Any) -> float | str | None:
    """Check ``data.eval``: a fraction strictly between 0 and 1, a split or file, or None (also written false)."""
    if value is None or value is False:
        return None
    try:
        fraction = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and value.strip():
            return value
        fraction = math.nan
    if not 0 < fraction < 1:
        raise ValueError(f"must be a fraction between 0 and 1, a split or a file, not {shown(value)}")
    return fraction


Whole = Annotated[int, BeforeValidator(_not_bool), Field(le=LARGEST)]
Number = Annotated[float, BeforeValidator(_not_bool)]


class Section(BaseModel):
    """Base of the config classes: frozen, and an unknown key is an error. A key left empty means its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {str(key): value for key, value in values.items() if value is not None}
        return values


def _check_train(value: Any) -> str | tuple[str, ...]:
    """Check ``data.train``: one source, or a list of several."""
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(isinstance(name, str) and name.strip() for name in listed):
        raise ValueError(f"must be a hub id, a file or a folder, or a list of them, not {value!r}")
    return value if isinstance(value, str) else tuple(listed)


Sources = Annotated[str | tuple[str, ...], PlainValidator(_check_train)]


class FurtherData(Section):
    """Another source of training rows. A key left out has the value of the ``data`` section."""

    train: Sources
    name: str | None = None
    split: str | None = None
    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    messages: str | None = None
    text: str | tuple[str, ...] | None = None
    label: str | None = None
    score: str | None = None
    weight: Number = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how often each row is trained on, relative to the rows of the data section",
    )


class DataConfig(Section):
    """Source of the examples, and the columns with their parts."""

    train: Sources = Field(
        description="a hub id, a .jsonl, .json, .csv, .tsv or .parquet file, a pattern such as data/*.jsonl, a folder, or a list"
    )
    name: str | None = Field(default=None, description="the hub dataset's configuration, such as main or sst2")
    split: str | None = Field(default=None, description="rows to train on, such as train[:8000]; default train")
    also: tuple[FurtherData, ...] | None = Field(
        default=None,
        description="further training data: a list of sections with train, and name, split and the columns that differ",
    )
    eval: Annotated[float | str | None, PlainValidator(_check_eval)] = Field(
        default=None, description="rows to evaluate on: a fraction of the rows of train (0.01), a split, or a file"
    )
    prompt: str | None = Field(
        default=None, description="column of the prompt; conversations[0].value is a value inside a column"
    )
    response: str | None = Field(
        default=None, description="column of the response, the only part that the model learns"
    )
    input: str | None = Field(default=None, description="column of further input, for a template that contains it")
    messages: str | None = Field(default=None, description="column of conversations, lists of role and content")
    tools: str | Literal[False] | None = Field(
        default=None, description="with messages: column of the tools' descriptions; default tools; false: none"
    )
    system: str | Literal[False] | None = Field(
        default=None, description="with messages: column of the system message; default system; false: none"
    )
    chat_template: str | None = Field(
        default=None,
        description="with messages: zephyr, chatml, or a file with a Jinja template, in place of the tokenizer's own",
    )
    roles: Annotated[dict[str, str] | None, PlainValidator(check_roles)] = Field(
        default=None,
        description="with messages: what the roles of the data mean, such as {bot: assistant, customer: user}; the usual other "
        "names are known",
    )
    text: str | tuple[str, ...] | None = Field(
        default=None, description="column of plain text; with a label or score, one column or a list of two"
    )
    label: str | None = Field(default=None, description="column of the class, a name or a number")
    labels: tuple[str, ...] | None = Field(
        default=None,
        description="names of the classes in the order of their numbers; default: the classes in the training rows, sorted",
    )
    score: str | None = Field(default=None, description="column of the number to predict")
    unlabelled: Literal["refuse", "leave_out"] = Field(
        default="refuse", description="with a label or score: what to do with rows that have none"
    )
    prompt_template: str = Field(
        default="none",
        description="none, alpaca, or your own text that contains {prompt}; for text columns, {text} and {text_pair}",
    )
    separator: str | None = Field(
        default=None,
        description="text between prompt and response; default: a new line, or nothing after your own template",
    )
    special_tokens: bool = Field(
        default=False,
        description="read the text of special tokens in the data, such as </s>, as these tokens and not as plain text",
    )
    max_length: Whole = Field(default=512, ge=2, description="maximum tokens of an example; the rest is cut off")
    packing: Annotated[bool | int, PlainValidator(check_packing)] = Field(
        default=False,
        description="generation: put several training examples into one row, without attention between them; true: rows of "
        "max_length tokens, or a number of tokens",
    )
    streaming: bool = Field(
        default=False,
        description="read the training rows during training instead of all at the start; needs training.max_steps",
    )
    shuffle_buffer: Whole = Field(
        default=10_000,
        ge=1,
        le=10**7,
        description="with streaming: rows among which the next one is drawn; 1: no shuffling",
    )
    num_proc: Whole = Field(
        default=1, ge=1, description="processes that tokenize, for local files from 16 MiB; their result is cached"
    )
    max_target_length: Whole | None = Field(
        default=None, ge=1, description="seq2seq: maximum tokens of a response; default max_length"
    )
    target_tokenizer: str | None = Field(
        default=None, description="seq2seq: tokenizer of the responses, if it differs from that of the prompts"
    )
    source_language: str | None = Field(
        default=None,
        description="seq2seq: the prompts' language, as a multilingual tokenizer names it (eng_Latn, en_XX)",
    )
    target_language: str | None = Field(
        default=None,
        description="seq2seq: the responses' language, as a multilingual tokenizer names it (deu_Latn, de_DE)",
    )
    subsample: Annotated[float | int | None, PlainValidator(check_subsample)] = Field(
        default=None, description="train on a random subset of the training rows: a fraction or a number of rows"
    )
    imbalance: Annotated[dict[str, float] | None, PlainValidator(check_imbalance)] = Field(
        default=None, description="classification: by class, the fraction of its training rows to keep"
    )
    label_noise: Number = Field(
        default=0.0, ge=0, le=1, description="fraction of the training rows that get a wrong label"
    )
    duplicate: Annotated[dict[str, Any] | None, PlainValidator(check_duplicate)] = Field(
        default=None,
        description="fraction of the training rows that occur twice, such as 0.2; or {share: 0.2, times: 5}",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _label_names(cls, values: Any) -> Any:
        if isinstance(values, list | tuple):
            values = [str(value) if isinstance(value, int | float) else value for value in values]
            if len(values) < 2 or len(set(map(str, values))) < len(values):
                raise ValueError(f"must name at least two classes, each once, not {shown(values)}")
        return values

    @property
    def train_sources(self) -> tuple[str, ...]:
        """Hub ids and paths under ``train``, whether one is given or a list."""
        return (self.train,) if isinstance(self.train, str) else self.train

    @property
    def sources(self) -> tuple[DataConfig, ...]:
        """One section for each source of training rows: this section, then those under ``also``."""
        reset: dict[str, Any] = {"also": None, "name": None, "split": None, "eval": None}
        further = [entry.model_dump(exclude_none=True, exclude={"weight"}) for entry in self.also or ()]
        return (self, *(self.model_copy(update={**reset, **entry}) for entry in further))

    @property
    def form(self) -> Form:
        """Form of example that the named columns make."""
        return form_of(self.model_dump())


class EarlyStopping(Section):
    """Stop a run whose evaluations no longer improve. A number alone is the patience."""

    patience: Whole = Field(ge=1, description="evaluations without a better score after which the run stops")
    min_delta: Number = Field(default=0.0, ge=0, description="a score counts as better if it differs by more than this")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, values: Any) -> Any:
        is_number = isinstance(values, int) and not isinstance(values, bool)
        return {"patience": values} if is_number else values


class MethodConfig(Section):
    """Fine-tuning method and its size. The method's own options may be written beside these keys."""

    name: str = Field(default="balora", description="a name from `balora methods`")
    rank: Whole = Field(default=8, ge=1, le=2**16, description="the adapter's rank r")
    alpha: Number | None = Field(
        default=None, gt=0, le=1e30, validate_default=True, description="the scaling is alpha / rank; default: the rank"
    )
    dropout: Number = Field(default=0.0, ge=0, lt=1, description="dropout probability on the adapter's input")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        min_length=1,
        description="all-linear, a regular expression that matches full module names, or a list of layer names",
    )
    exclude_modules: str | tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="modules without an adapter: a regular expression that matches full names, or a list of names; a module "
        "excludes all layers in it",
    )
    options: dict[str, Any] = Field(default={}, validate_default=True, description="the method's own options")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        """Move a method's own options, written beside the common keys, into ``options``."""
        if not isinstance(values, Mapping) or not isinstance(values.get("options") or {}, Mapping):
            return values
        options = {key for method in METHODS.values() for key in method.options} - cls.model_fields.keys()
        common = {key: value for key, value in values.items() if key not in options}
        # An option left empty means its default.
        given = {key: value for key, value in values.items() if key in options and value is not None}
        twice = sorted(given.keys() & (common.get("options") or {}).keys())
        if twice:
            problem = "method.{} is given twice: beside the other keys of method, and in method.options. Keep one."
            raise Problems([problem.format(key) for key in twice])
        return {**common, "options": {**(common.get("options") or {}), **given}}

    @field_validator("name")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"must be one of {', '.join(METHODS)}, not {shown(name)}.{suggest(name, METHODS)}")
        return name

    @field_validator("alpha")
    @classmethod
    def _alpha_from_rank(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        return info.data.get("rank") if alpha is None else alpha

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")
        problems = option_problems(METHODS[name], options) if name is not None else []
        if problems:
            raise Problems(problems)
        # As YAML gives them back: the stored config must equal the one that was given.
        return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}

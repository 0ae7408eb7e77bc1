"""The model card (README.md) beside a result: what was trained, on which data, how, and what was measured.

A card has settings and measured numbers only. The licence is given as unknown, because only the publisher can choose it.
"""

import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import BitsAndBytesConfig

from balora.checkpoints.checkpoint import MANIFEST
from balora.config.run_config import HARMLESS, RunConfig, flatten
from balora.data.files.hub import looks_local
from balora.data.files.readers import ENDINGS
from balora.data.perturbations import describe_perturbations
from balora.errors import hide_passwords
from balora.files import read_json
from balora.methods import METHODS
from balora.objective import Objective

Form = Literal["run", "lora", "merged"]
_TASKS = {  # the hub's pipeline and transformers' class, by task
    "generation": ("text-generation", "AutoModelForCausalLM"),
    "seq2seq": ("text2text-generation", "AutoModelForSeq2SeqLM"),
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "regression": ("text-classification", "AutoModelForSequenceClassification"),
}
_TERMS = {
    "consistency": ("consistency_schedule", "stays close to the pre-trained model's outputs"),
    "diversity": ("focus_schedule", "keeps outputs from becoming alike"),
    "spectral": ("focus_schedule", "keeps the leading singular values of the outputs"),
    "variance": ("focus_schedule", "keeps every output varied (not in the paper)"),
}
_EXPORT = """

For plain peft or transformers, export it first. Each export is compared with the trained model:

```
balora export THIS_FOLDER --to lora --output A_LORA
balora export THIS_FOLDER --to merged --output A_MODEL
```"""
AUDIT_HEADING = "## What fine-tuning changed"
_SPECIAL = re.compile(r"[\\`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""Characters that mean something in Markdown within a line."""
_UNITS = {"runtime": " s", "memory_mib": " MiB", "per_second": " / s", "flos": " FLOP"}
_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
"""Metrics that cover only the time since the resume."""
_LIMITS = (
    "## Limits\n\nNothing beyond the table of results was measured. What the cards of the base model and of the data say "
    "about licence, risks and limits applies here too. The publisher of this model chooses its licence."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Facts for a model card that a run's config does not have."""

    base: str | None
    """Hub id or directory of the pre-trained model; None if it has neither."""
    task: str
    method: str
    labels: Sequence[str] | None = None  # class names in the order of their numbers
    rank: int | None = None  # rank of the exported LoRA
    comparison: str | None = None  # result of the comparison with the trained model
    quantization_note: str | None = None
    scale: float = 1.0  # a in W + a·ΔW
    quantization: BitsAndBytesConfig | None = None
    """Quantization with which the LoRA's base must be loaded."""
    auto_class: str | None = None
    """Class that loads the model, if it is not the usual one of the task."""
    vocabulary: int | None = None
    """Number of tokens to which the LoRA's base must be resized."""
    first_token: int | None = None
    """Token with which the answers of an encoder-decoder begin: the code of their language."""

    @property
    def classifies(self) -> bool:
        """True if the model has a classification head."""
        return self.task in ("classification", "regression")


def model_card(
    config: RunConfig | None,
    results: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    form: Form = "run",
    description: ModelDescription | None = None,
    audit: Mapping[str, Any] | None = None,
) -> str:
    """Write a model card: Markdown with YAML front matter, as the Hugging Face Hub reads it.

    Without ``config`` (a model that is not a run's) the card needs a ``description``. ``results`` are the measured numbers by
    name. ``provenance`` has versions, hardware, commit, time, data (with digest and labels) and ``resumed``, as ``run.json``.
    ``audit`` is the content of ``audit.json``.
    """
    if description is None:
        assert config is not None, "a card without config needs a description"
        labels = config.data.labels or (provenance.get("data") or {}).get("labels")
        description = ModelDescription(base=config.model, task=config.task, method=config.method.name, labels=labels)
    adapter = METHODS[description.method].form != "model"  # the directory has an adapter, not the whole model
    parts = [
        _front_matter(config, description, form),
        _summary(config, description, form, adapter),
        *([_data(config, provenance), _objective(config, description), _training(config)] if config else []),
        _results(results, config, provenance),
        audit_section(audit) if audit is not None else "",
        _usage(description, form, adapter, config),
        _LIMITS,
        _made_with(provenance),
    ]
    return hide_passwords("\n\n".join(part for part in parts if part) + "\n")


def _front_matter(config: RunConfig | None, model: ModelDescription, form: Form) -> str:
    base = model.base if model.base and not looks_local(model.base) else None
    adapter = METHODS[model.method].form == "lora" and form != "merged"
    data = [name for name in config.data.train_sources if not looks_local(name, ENDINGS)] if config else []
    fields = {
        "base_model": base,
        "base_model_relation": base and ("adapter" if adapter else "finetune"),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": _TASKS[model.task][0],
        "license": "unknown",
        "datasets": data,
        "tags": list(dict.fromkeys(["balora", model.method, *(["lora"] if adapter else [])])),
    }
    known = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _summary(config: RunConfig | None, model: ModelDescription, form: Form, adapter: bool) -> str:
    method, settings = METHODS[model.method], None
    base = _public_name(model.base) if model.base else "a pre-trained model"
    if config and method.form == "lora":
        own = config.method
        settings = f"rank {own.rank}, alpha {own.alpha:g}, dropout {own.dropout:g}, on {_plain(own.target_modules)}"
        settings += f" without {_plain(own.exclude_modules)}" if own.exclude_modules else ""
    if not adapter or form == "merged":
        content = "all weights, for plain transformers"
    elif form == "lora":
        content = f"a LoRA of rank {model.rank} on the untouched base model, for plain peft"
    else:
        content = "the adapter as it was trained, with its initial values; balora loads it"
    facts = _facts(
        (
            "Base model",
            _Markdown(base + (f", revision {_code(config.revision)}" if config and config.revision else "")),
        ),
        ("Task", model.task),
        (
            "Method",
            _Markdown(method.summary if method.paper == "-" else f"{method.name}: {method.summary} ({method.paper})"),
        ),
        ("Trained", _Markdown(method.trains if model.classifies else method.trains.partition(" (")[0])),
        ("Classes", ", ".join(f"{i} = {name}" for i, name in enumerate(model.labels or ()))),
        ("Adapter", settings),
        ("In this folder", content),
        (
            "Scale of the change",
            model.scale != 1 and f"{model.scale:g}: W + {model.scale:g} · ΔW, ΔW the change by training",
        ),
        ("Compared with the trained model", model.comparison),
        ("Trained in few bits", model.quantization_note),
    )
    name = Path(model.base).name if model.base else "A model"
    return f"# {_escape(name)}, fine-tuned with {method.name}\n\n{facts}"


def _data(config: RunConfig, provenance: Mapping[str, Any]) -> str:
    data, recorded = config.data, provenance.get("data") or {}
    evaluated: str | None = _public_name(data.eval) if isinstance(data.eval, str) and data.eval else None
    if isinstance(data.eval, float):
        evaluated = f"a share of {data.eval:g} of the rows, held out of training"
    columns = {key: getattr(data, key) for key in ("prompt", "input", "response", "messages", "text", "label", "score")}
    template = json.dumps(data.prompt_template, ensure_ascii=False)[1:-1]
    perturbations = recorded.get("conditions")
    sources = ", ".join(map(_public_name, data.train_sources))
    facts = _facts(
        ("Trained on", _Markdown(sources + (f", {_code(data.name)}" if data.name else ""))),
        ("Rows", data.split and _code(data.split)),
        ("Evaluated on", evaluated),
        ("Columns", ", ".join(f"{key}: {_plain(value)}" for key, value in columns.items() if value)),
        ("Prompt template", data.prompt and _code(template)),
        ("Longest example", f"{data.max_length} tokens"),
        ("Conditions", perturbations and describe_perturbations(perturbations).partition(": ")[2]),
        ("Digest", recorded.get("digest")),
    )
    return f"## Data\n\n{facts}"


def _objective(config: RunConfig, model: ModelDescription) -> str:
    terms, notices = config.regularization, list[str]()
    if config.task != "classification" or model.labels:  # without labels the number of outputs is unknown
        objective = Objective(terms, config.task, num_labels=len(model.labels or ()) or None)
        terms, notices = objective.config, objective.notices
    notes = "".join(f"\n\n{notice}" for notice in notices)
    if not terms.active:
        return f"## Objective\n\nThe task loss alone: all regularizers had weight 0.{notes}"
    weights = {name: getattr(terms, name) for name in _TERMS if getattr(terms, name) > 0}
    schedules = {name: getattr(terms, _TERMS[name][0]) for name in weights}
    if terms.consistency_budget is not None:
        schedules["consistency"] = f"follows a budget of {terms.consistency_budget:g} nats per token"
    rows = [(name, f"{weight:g}", schedules[name], _TERMS[name][1]) for name, weight in weights.items()]
    table = _table(("Term", "Weight", "Schedule", "Purpose"), rows)
    details = f"Temperature {terms.temperature:g}, top_k {terms.top_k}, spectral rank {terms.spectral_rank}."
    return f"## Objective\n\nThe task loss plus these regularizers:\n\n{table}\n\n{details}{notes}"


def _training(config: RunConfig) -> str:
    rows: list[tuple[str, Any]] = [("seed", config.seed), ("dtype of the weights", config.dtype)]
    rows += [(name, _plain(value)) for name, value in config.training.items() if f"training.{name}" not in HARMLESS]
    return f"## Training\n\n{_table(('Setting', 'Value'), rows)}\n\nAll other settings are transformers' defaults."


def _results(results: Mapping[str, Any], config: RunConfig | None, provenance: Mapping[str, Any]) -> str:
    resumed = bool(provenance.get("resumed"))
    left_out = _TIMES if resumed else ()
    numbers = {n: v for n, v in flatten(results).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rows = [(name, _number(name, value)) for name, value in numbers.items() if name not in left_out]
    if not rows:
        return "## Results\n\nNothing was measured."
    device = (provenance.get("hardware") or {}).get("device")
    where, seed = f" on {_escape(device)}" if device else "", f", seed {config.seed}" if config else ""
    note = " The run was interrupted and resumed, so its time is not known." if resumed else ""
    return f"## Results\n\nMeasured in one run{seed}{where}.{note}\n\n{_table(('Measure', 'Value'), rows)}"


def audit_section(audit: Mapping[str, Any]) -> str:
    """Return the answers of an audit as a section: a line for each question, and what was not measured."""
    answers = audit["answers"].values()
    rows = [(a["asks"], a["verdict"], a["sentence"]) for a in answers if a["verdict"] != "not measured"]
    missing = [name for name, a in audit["answers"].items() if a["verdict"] == "not measured"]
    note = f"\n\nNot measured: {', '.join(missing)}." if missing else ""
    base = _public_name(audit["base"])
    return (
        f"{AUDIT_HEADING}\n\n`balora audit` compared the model with its base, {base}. A change is not a fault by itself: "
        f"fine-tuning is meant to change a model.\n\n{_table(('Question', 'Verdict', 'Number'), rows)}{note}"
    )


def with_audit(card: str, audit: Mapping[str, Any]) -> str:
    """Return a card with the section of an audit, in place of that of an earlier audit."""
    before, heading, rest = card.partition(f"{AUDIT_HEADING}\n")
    if heading:
        _, mark, after = rest.partition("\n## ")
        card = before + mark.lstrip("\n") + after
    before, heading, after = card.partition("\n## Use\n")
    return hide_passwords(f"{before.rstrip()}\n\n{audit_section(audit)}\n{heading}{after}")


def read_audit(result: Path, run: Path | None) -> dict[str, Any] | None:
    """Return the audit of a result or checkpoint from its default place; None without one, or if it is of other weights."""
    path = audit_folder(result, run) / "audit.json"
    manifest = result / MANIFEST
    if not path.is_file() or not manifest.is_file():
        return None
    audit = read_json(path, "Delete it, and audit again.")
    weights = audit.get("identity", {}).get("tuned", {}).get("weights")
    return audit if weights == hashlib.sha256(manifest.read_bytes()).hexdigest() else None


def audit_folder(result: Path, run: Path | None) -> Path:
    """Return the folder in which an audit of a result or checkpoint is written by default."""
    folder = (run or result) / "audit"
    return folder / result.name if result.name.startswith("checkpoint-") else folder


def _usage(model: ModelDescription, form: Form, adapter: bool, config: RunConfig | None) -> str:
    kind, folder, after = model.auto_class or _TASKS[model.task][1], "THIS_FOLDER", ""
    if form == "run" and adapter:
        folder, after = "THIS_FOLDER/adapter", _EXPORT
        code = 'import balora\nfrom transformers import AutoTokenizer\n\nmodel = balora.load("THIS_FOLDER")'
    elif form == "lora":
        address = model.base if model.base and not looks_local(model.base) else "FOLDER_OF_THE_BASE_MODEL"
        revision = f", revision={json.dumps(config.revision)}" if config and config.revision else ""
        imports, bits = _quantization_code(model.quantization)
        arguments = f'"{address}"{revision}{_label_arguments(model)}{", quantization_config=bits" if bits else ""}'
        code = (
            f"{imports}from peft import PeftModel\nfrom transformers import {kind}, AutoTokenizer\n\n{bits}"
            f"base = {kind}.from_pretrained({arguments})\n"
            f"{f'base.resize_token_embeddings({model.vocabulary})' + chr(10) if model.vocabulary else ''}"
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")'
        )
        if model.first_token is not None:
            code += f"\nmodel.generation_config.forced_bos_token_id = {model.first_token}"
    else:
        folder = "THIS_FOLDER/model" if form == "run" else folder
        code = f'from transformers import {kind}, AutoTokenizer\n\nmodel = {kind}.from_pretrained("{folder}")'
    return f'## Use\n\n```python\n{code}\ntokenizer = AutoTokenizer.from_pretrained("{folder}")\n```{after}'


def _quantization_code(config: BitsAndBytesConfig | None) -> tuple[str, str]:
    """Return the imports and the line of code that define ``bits``; two empty strings without quantization."""
    if config is None:
        return "", ""
    if config.load_in_8bit:
        return "from transformers import BitsAndBytesConfig\n", "bits = BitsAndBytesConfig(load_in_8bit=True)\n"
    dtype, double = config.bnb_4bit_compute_dtype, config.bnb_4bit_use_double_quant
    given = f'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant={double}, bnb_4bit_compute_dtype={dtype}'
    return "import torch\nfrom transformers import BitsAndBytesConfig\n", f"bits = BitsAndBytesConfig({given})\n"


def _label_arguments(model: ModelDescription) -> str:
    """Return the arguments that a plain load of a classifier needs: its classes, and permission to replace the stored head."""
    if not model.classifies:
        return ""
    labels = dict(enumerate(model.labels)) if model.labels and model.task == "classification" else None
    classes = f", id2label={labels!r}" if labels else ", num_labels=1" if model.task == "regression" else ""
    return f"{classes}, ignore_mismatched_sizes=True"


def _made_with(provenance: Mapping[str, Any]) -> str:
    commit = provenance.get("commit") or {}
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    facts = _facts(
        *(provenance.get("versions") or {}).items(),
        *((name, _plain(value)) for name, value in (provenance.get("hardware") or {}).items() if value is not None),
        ("balora commit", commit.get("id") and _Markdown(_code(commit["id"]) + dirty)),
        ("time", provenance.get("time")),
    )
    return facts and f"## Made with\n\n{facts}"


class _Markdown(str):
    """Text that is Markdown already. `_table` escapes all other text, which may come from data or config."""


def _escape(text: str) -> str:
    """Escape HTML, Markdown and everything that a viewer would make a link."""
    escaped = _SPECIAL.sub(r"\\\g<0>", html.escape(text, quote=False))
    escaped = escaped.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"(?i)\bwww\.", "www&#46;", escaped)


def _code(text: str) -> _Markdown:
    """Return a code span, in which nothing is HTML, a link or Markdown."""
    text = " ".join(str(text).splitlines())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return _Markdown(f"{fence}{pad}{text}{pad}{fence}")


def _public_name(name: str) -> _Markdown:
    """Return a hub id, or the last part of a local path: a card may be published, so it must not show directories."""
    return _Markdown(f"{_code(Path(name).name)} (local)") if looks_local(name, ENDINGS) else _code(name)


def _facts(*facts: tuple[str, Any]) -> str:
    """Return a table of names and values without the facts that have no value, or "" if all of them have none."""
    rows = [(name, value) for name, value in facts if value]
    return _table(("", ""), rows) if rows else ""


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    def cell(value: Any) -> str:
        text = value if isinstance(value, _Markdown) else _escape(str(value))
        return " ".join(text.splitlines()).replace("|", "\\|")

    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, value: float) -> str:
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit

"""The model card (README.md) beside a result: what was trained, on which data, how, and what was measured.

A card has settings and measured numbers only. The licence is given as unknown, because only the publisher can choose it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import BitsAndBytesConfig

from balora.config.run_config import HARMLESS, RunConfig, flatten
from balora.data.hub import looks_local
from balora.data.perturbations import describe_perturbations
from balora.methods import METHODS
from balora.objective import Objective

Form = Literal["run", "lora", "merged"]
_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
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
_UNITS = {"runtime": " s", "memory_mib": " MiB", "per_second": " / s", "flos": " FLOP"}
_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
"""Metrics that cover only the time since the resume."""
_LIMITS = (
    "## Limits\n\nNothing beyond the table of results was measured. What the cards of the base model and of the data say "
    "about licence, risks and limits applies here too. The publisher of this model chooses its licence."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Facts about a model for its card that a run's config does not have."""

    base: str | None
    """Hub id or directory of the pre-trained model; None if it has neither."""
    task: str
    method: str
    labels: Sequence[str] | None = None
    """Class names in the order of their numbers."""
    rank: int | None = None
    """Rank of the exported LoRA."""
    comparison: str | None = None
    """Result of the comparison of an export with the trained model."""
    quantization_note: str | None = None
    """Note on an export of a model that was trained in 4 or 8 bits."""
    quantization: BitsAndBytesConfig | None = None
    """Quantization with which the LoRA's base must be loaded."""

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
) -> str:
    """Write a model card.

    Args:
        config: Config of the run; None for a model without one, which needs ``description``.
        results: Measured numbers by name; values that are not numbers are left out.
        provenance: Versions, hardware, commit, time, data (with digest and labels) and ``resumed``, as in ``run.json``.
        form: ``run`` is the result that balora loads; ``lora`` and ``merged`` are exports for peft and transformers.
        description: Facts that the config does not have; default: those of the run.

    Returns:
        Markdown with YAML front matter, as the Hugging Face Hub reads it.
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
        _usage(description, form, adapter, config),
        _LIMITS,
        _made_with(provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(config: RunConfig | None, model: ModelDescription, form: Form) -> str:
    base = model.base if model.base and not looks_local(model.base) else None
    adapter = METHODS[model.method].form == "lora" and form != "merged"
    fields: dict[str, Any] = {}
    if base:
        fields |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    fields |= {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": _TASKS[model.task][0],
        "license": "unknown",
    }
    if config and not looks_local(config.data.train, _DATA_FILES):
        fields["datasets"] = [config.data.train]
    fields["tags"] = list(dict.fromkeys(["balora", model.method, *(["lora"] if adapter else [])]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(config: RunConfig | None, model: ModelDescription, form: Form, adapter: bool) -> str:
    method = METHODS[model.method]
    base = _public_name(model.base) if model.base else "a pre-trained model"
    rows: list[tuple[str, Any]] = [
        ("Base model", base + (f", revision `{config.revision}`" if config and config.revision else "")),
        ("Task", model.task),
        ("Method", f"{method.name}: {method.summary} ({method.paper})" if method.paper != "-" else method.summary),
        ("Trained", method.trains if model.classifies else method.trains.partition(" (")[0]),
    ]
    if model.labels:
        rows.append(("Classes", ", ".join(f"{i} = {name}" for i, name in enumerate(model.labels))))
    if config and method.form == "lora":
        own = config.method
        targets = own.target_modules if isinstance(own.target_modules, str) else ", ".join(own.target_modules)
        rows.append(("Adapter", f"rank {own.rank}, alpha {own.alpha:g}, dropout {own.dropout:g}, on {targets}"))
    rows.append(("In this folder", _content(form, adapter, model.rank)))
    if model.comparison:
        rows.append(("Compared with the trained model", model.comparison))
    if model.quantization_note:
        rows.append(("Trained in few bits", model.quantization_note))
    name = Path(model.base).name if model.base else "A model"
    return f"# {name}, fine-tuned with {method.name}\n\n{_table(('', ''), rows)}"


def _content(form: Form, adapter: bool, rank: int | None) -> str:
    if not adapter or form == "merged":
        return "all weights, for plain transformers"
    if form == "lora":
        return f"a LoRA of rank {rank} on the untouched base model, for plain peft"
    return "the adapter as it was trained, with its initial values; balora loads it"


def _data(config: RunConfig, provenance: Mapping[str, Any]) -> str:
    data = config.data
    facts = provenance.get("data") or {}
    rows: list[tuple[str, Any]] = [("Trained on", _public_name(data.train) + (f", `{data.name}`" if data.name else ""))]
    rows += [("Rows", f"`{data.split}`")] if data.split else []
    if isinstance(data.eval, float):
        rows.append(("Evaluated on", f"a share of {data.eval:g} of the rows, held out of training"))
    elif data.eval:
        rows.append(("Evaluated on", _public_name(data.eval)))
    columns = {key: getattr(data, key) for key in ("prompt", "input", "response", "messages", "text", "label", "score")}
    rows.append(("Columns", ", ".join(f"{key}: {_plain(value)}" for key, value in columns.items() if value)))
    if data.prompt:
        template = json.dumps(data.prompt_template, ensure_ascii=False)[1:-1]
        rows.append(("Prompt template", f"`{template}`"))
    rows.append(("Longest example", f"{data.max_length} tokens"))
    if facts.get("conditions"):
        rows.append(("Conditions", _plain(describe_perturbations(facts["conditions"]).partition(": ")[2])))
    if facts.get("digest"):
        rows.append(("Digest", _plain(facts["digest"])))
    return f"## Data\n\n{_table(('', ''), rows)}"


def _objective(config: RunConfig, model: ModelDescription) -> str:
    terms, notices = config.regularization, list[str]()
    if config.task != "classification" or model.labels:  # without labels the number of outputs is unknown
        objective = Objective(terms, config.task, num_labels=len(model.labels or ()) or None)
        terms, notices = objective.config, objective.notices
    notes = "".join(f"\n\n{notice}" for notice in notices)
    if not terms.active:
        return f"## Objective\n\nThe task loss alone: all regularizers had weight 0.{notes}"
    rows = [
        (name, f"{getattr(terms, name):g}", getattr(terms, schedule), meaning)
        for name, (schedule, meaning) in _TERMS.items()
        if getattr(terms, name) > 0
    ]
    details = f"Temperature {terms.temperature:g}, top_k {terms.top_k}, spectral rank {terms.spectral_rank}."
    return (
        "## Objective\n\nThe task loss plus these regularizers:\n\n"
        f"{_table(('Term', 'Weight', 'Schedule', 'Purpose'), rows)}\n\n{details}{notes}"
    )


def _training(config: RunConfig) -> str:
    rows: list[tuple[str, Any]] = [("seed", config.seed), ("dtype of the weights", config.dtype)]
    rows += [(name, _plain(value)) for name, value in config.training.items() if f"training.{name}" not in HARMLESS]
    return f"## Training\n\n{_table(('Setting', 'Value'), rows)}\n\nAll other settings are transformers' defaults."


def _results(results: Mapping[str, Any], config: RunConfig | None, provenance: Mapping[str, Any]) -> str:
    resumed = bool(provenance.get("resumed"))
    left_out = _TIMES if resumed else ()
    rows = [
        (name, _number(name, value))
        for name, value in flatten(results).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in left_out
    ]
    if not rows:
        return "## Results\n\nNothing was measured."
    hardware = provenance.get("hardware") or {}
    where = f" on {hardware['device']}" if hardware.get("device") else ""
    seed = f", seed {config.seed}" if config else ""
    note = " The run was interrupted and resumed, so its time is not known." if resumed else ""
    return f"## Results\n\nMeasured in one run{seed}{where}.{note}\n\n{_table(('Measure', 'Value'), rows)}"


def _usage(model: ModelDescription, form: Form, adapter: bool, config: RunConfig | None) -> str:
    kind, folder, after = _TASKS[model.task][1], "THIS_FOLDER", ""
    if form == "run" and adapter:
        folder, after = "THIS_FOLDER/adapter", _EXPORT
        code = 'import balora\nfrom transformers import AutoTokenizer\n\nmodel = balora.load("THIS_FOLDER")'
    elif form == "lora":
        address = model.base if model.base and not looks_local(model.base) else "FOLDER_OF_THE_BASE_MODEL"
        revision = f', revision="{config.revision}"' if config and config.revision else ""
        imports, bits = _quantization_code(model.quantization)
        arguments = f'"{address}"{revision}{_label_arguments(model)}{", quantization_config=bits" if bits else ""}'
        code = (
            f"{imports}from peft import PeftModel\nfrom transformers import {kind}, AutoTokenizer\n\n{bits}"
            f'base = {kind}.from_pretrained({arguments})\nmodel = PeftModel.from_pretrained(base, "THIS_FOLDER")'
        )
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
    """Return the arguments that a plain load of a classifier needs: its classes, and to replace the stored head."""
    if not model.classifies:
        return ""
    labels = dict(enumerate(model.labels)) if model.labels and model.task == "classification" else None
    classes = f", id2label={labels!r}" if labels else ", num_labels=1" if model.task == "regression" else ""
    return f"{classes}, ignore_mismatched_sizes=True"


def _made_with(provenance: Mapping[str, Any]) -> str:
    hardware, commit = provenance.get("hardware") or {}, provenance.get("commit") or {}
    rows: list[tuple[str, Any]] = [(n, version) for n, version in (provenance.get("versions") or {}).items() if version]
    rows += [(name, _plain(value)) for name, value in hardware.items() if value is not None]
    if commit.get("id"):
        dirty = " with uncommitted changes" if commit.get("dirty") else ""
        rows.append(("balora commit", f"`{commit['id']}`{dirty}"))
    if provenance.get("time"):
        rows.append(("time", provenance["time"]))
    return f"## Made with\n\n{_table(('', ''), rows)}" if rows else ""


def _public_name(name: str) -> str:
    """Return a hub id, or the last part of a local path: a card may be published, so it must not show directories."""
    return f"`{Path(name).name}` (local)" if looks_local(name, _DATA_FILES) else f"`{name}`"


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", " ")

    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, value: float) -> str:
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit

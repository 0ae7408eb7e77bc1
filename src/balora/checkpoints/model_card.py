"""The model card (README.md) that lies beside a result: what was trained, on what, how, and what was measured.

It holds settings and measured numbers only. The licence is the publisher's to name, so it is given as unknown.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import BitsAndBytesConfig

from balora.config.run_config import HARMLESS, RunConfig
from balora.data import describe_perturbations
from balora.data.hub import looks_local
from balora.exporting.quantized import loading_code
from balora.methods import METHODS
from balora.objective import Objective

Form = Literal["run", "lora", "merged"]
_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_PIPELINES = {
    "generation": "text-generation",
    "seq2seq": "text2text-generation",
    "classification": "text-classification",
    "regression": "text-classification",
}
_CLASSES = {
    "generation": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
}
_TERMS = {
    "consistency": ("consistency_schedule", "stays close to the pre-trained model's outputs"),
    "diversity": ("focus_schedule", "keeps outputs from becoming alike"),
    "spectral": ("focus_schedule", "keeps the leading singular values of the outputs"),
    "variance": ("focus_schedule", "keeps every output varied (not in the paper)"),
}
_EXPORT = """

For plain peft or transformers, write it in their form first; either is compared with the trained model:

```
balora export THIS_FOLDER --to lora --output A_LORA
balora export THIS_FOLDER --to merged --output A_MODEL
```"""
_UNITS = {"runtime": " s", "memory_mib": " MiB", "per_second": " / s", "flos": " FLOP"}

_TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
"""Of a resumed run they are those of its last part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about, where there are no run settings to say it: a model exported from memory."""

    base: str | None
    """Hub id or folder of the pre-trained model, None when it has neither."""
    task: str
    method: str
    labels: Sequence[str] | None = None
    """Class names in the order of their numbers."""
    rank: int | None = None
    """Of the exported LoRA."""
    difference: str | None = None
    """What the comparison of an export with the trained model found, in words."""
    note: str | None = None
    """What has to be known of a LoRA that was trained on weights in few bits."""
    rounding: BitsAndBytesConfig | None = None
    """How its base has to be loaded, where in few bits."""


def model_card(
    settings: RunConfig | None,
    results: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    form: Form = "run",
    subject: Subject | None = None,
) -> str:
    """Write the card.

    Args:
        settings: Of the run; None for a model that no config describes, then ``subject`` must be given.
        results: Measured numbers by name; what is not a number is left out.
        provenance: Versions, hardware, commit, time, data (with its digest and labels), ``resumed``, as in ``run.json``.
        form: ``run`` is the raw result that balora loads; ``lora`` and ``merged`` are exports for plain libraries.
        subject: What settings do not know: class names, the exported rank, the comparison with the trained model.

    Returns:
        Markdown with YAML front matter, as the Hugging Face Hub reads it.
    """
    if subject is None:
        assert settings is not None, "a card without settings needs a subject"
        labels = settings.data.labels or (provenance.get("data") or {}).get("labels")
        subject = Subject(base=settings.model, task=settings.task, method=settings.method.name, labels=labels)
    # Whether the run's folder holds what was added to the model, not the model.
    adapter = METHODS[subject.method].form != "model"
    parts = [
        _front_matter(settings, subject, form),
        _summary(settings, subject, form, adapter),
        *([_data(settings, provenance), _objective(settings, subject), _training(settings)] if settings else []),
        _results(results, settings, provenance),
        _usage(subject, form, adapter, settings),
        _limits(),
        _made_with(provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(settings: RunConfig | None, subject: Subject, form: Form) -> str:
    base = subject.base if subject.base and not looks_local(subject.base) else None
    adapter = METHODS[subject.method].form == "lora" and form != "merged"
    fields: dict[str, Any] = {}
    if base:
        fields |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    fields |= {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": _PIPELINES[subject.task],
        "license": "unknown",
    }
    if settings and not looks_local(settings.data.train, _DATA_FILES):
        fields["datasets"] = [settings.data.train]
    fields["tags"] = list(dict.fromkeys(["balora", subject.method, *(["lora"] if adapter else [])]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(settings: RunConfig | None, subject: Subject, form: Form, adapter: bool) -> str:
    method = METHODS[subject.method]
    base = _place(subject.base) if subject.base else "a pre-trained model"
    rows: list[tuple[str, Any]] = [
        ("Base model", base + (f", revision `{settings.revision}`" if settings and settings.revision else "")),
        ("Task", subject.task),
        ("Method", f"{method.name}: {method.summary} ({method.paper})" if method.paper != "-" else method.summary),
        ("Trained", method.trains if _classifies(subject) else method.trains.partition(" (")[0]),
    ]
    if subject.labels:
        rows.append(("Classes", ", ".join(f"{i} = {name}" for i, name in enumerate(subject.labels))))
    if settings and method.form == "lora":
        own = settings.method
        targets = own.target_modules if isinstance(own.target_modules, str) else ", ".join(own.target_modules)
        rows.append(("Adapter", f"rank {own.rank}, alpha {own.alpha:g}, dropout {own.dropout:g}, on {targets}"))
    rows.append(("In this folder", _content(form, adapter, subject.rank)))
    if subject.difference:
        rows.append(("Compared with the trained model", subject.difference))
    if subject.note:
        rows.append(("Trained in few bits", subject.note))
    name = Path(subject.base).name if subject.base else "A model"
    return f"# {name}, fine-tuned with {method.name}\n\n{_table(('', ''), rows)}"


def _content(form: Form, adapter: bool, rank: int | None) -> str:
    if not adapter or form == "merged":
        return "all weights, for plain transformers"
    if form == "lora":
        return f"a LoRA of rank {rank} on the untouched base model, for plain peft"
    return "the adapter as it was trained, with its initial values; balora loads it"


def _data(settings: RunConfig, provenance: Mapping[str, Any]) -> str:
    data = settings.data
    known = provenance.get("data") or {}
    rows: list[tuple[str, Any]] = [("Trained on", _place(data.train) + (f", `{data.name}`" if data.name else ""))]
    rows += [("Rows", f"`{data.split}`")] if data.split else []
    if isinstance(data.eval, float):
        rows.append(("Evaluated on", f"a share of {data.eval:g} of the rows, held out of training"))
    elif data.eval:
        rows.append(("Evaluated on", _place(data.eval)))
    columns = {key: getattr(data, key) for key in ("prompt", "input", "response", "messages", "text", "label", "score")}
    rows.append(("Columns", ", ".join(f"{key}: {_plain(value)}" for key, value in columns.items() if value)))
    if data.prompt:
        rows.append(("Prompt template", _code(data.prompt_template)))
    rows.append(("Longest example", f"{data.max_length} tokens"))
    if known.get("conditions"):
        rows.append(("Conditions", _plain(describe_perturbations(known["conditions"]).partition(": ")[2])))
    if known.get("digest"):
        rows.append(("Digest", _plain(known["digest"])))
    return f"## Data\n\n{_table(('', ''), rows)}"


def _objective(settings: RunConfig, subject: Subject) -> str:
    config, notices = settings.regularization, list[str]()
    if settings.task != "classification" or subject.labels:  # else nobody knows how many outputs there were
        objective = Objective(config, settings.task, num_labels=len(subject.labels or ()) or None)
        config, notices = objective.config, objective.notices
    said = "".join(f"\n\n{notice}" for notice in notices)
    if not config.active:
        return f"## Objective\n\nThe task loss alone: all regularizers had weight 0.{said}"
    rows = [
        (name, f"{getattr(config, name):g}", getattr(config, schedule), meaning)
        for name, (schedule, meaning) in _TERMS.items()
        if getattr(config, name) > 0
    ]
    details = f"Temperature {config.temperature:g}, top_k {config.top_k}, spectral rank {config.spectral_rank}."
    return (
        "## Objective\n\nThe task loss plus these regularizers:\n\n"
        f"{_table(('Term', 'Weight', 'Schedule', 'What it is for'), rows)}\n\n{details}{said}"
    )


def _training(settings: RunConfig) -> str:
    rows: list[tuple[str, Any]] = [("seed", settings.seed), ("weights held in", settings.dtype)]
    kept = {name: value for name, value in settings.training.items() if f"training.{name}" not in HARMLESS}
    rows += [(name, _plain(value)) for name, value in kept.items()]
    return f"## Training\n\n{_table(('Setting', 'Value'), rows)}\n\nEverything else is as transformers has it."


def _results(results: Mapping[str, Any], settings: RunConfig | None, provenance: Mapping[str, Any]) -> str:
    resumed = bool(provenance.get("resumed"))
    left_out = _TIMES if resumed else ()
    rows = [
        (name, _number(name, value)) for name, value in _flat(results) if _is_number(value) and name not in left_out
    ]
    if not rows:
        return "## Results\n\nNothing was measured."
    hardware = provenance.get("hardware") or {}
    where = f" on {hardware['device']}" if hardware.get("device") else ""
    seed = f", seed {settings.seed}" if settings else ""
    note = " The run was interrupted and resumed, so its time is not known." if resumed else ""
    return f"## Results\n\nMeasured in one run{seed}{where}.{note}\n\n{_table(('Measure', 'Value'), rows)}"


def _usage(subject: Subject, form: Form, adapter: bool, settings: RunConfig | None) -> str:
    kind, folder, after = _CLASSES[subject.task], "THIS_FOLDER", ""
    if form == "run" and adapter:
        folder, after = "THIS_FOLDER/adapter", _EXPORT
        code = 'import balora\nfrom transformers import AutoTokenizer\n\nmodel = balora.load("THIS_FOLDER")'
    elif form == "lora":
        revision = f', revision="{settings.revision}"' if settings and settings.revision else ""
        base = f'"{_address(subject.base)}"{revision}{_label_arguments(subject)}'
        also, bits = loading_code(subject.rounding)
        base += ", quantization_config=bits" if bits else ""
        code = (
            f"{also}from peft import PeftModel\nfrom transformers import {kind}, AutoTokenizer\n\n{bits}"
            f'base = {kind}.from_pretrained({base})\nmodel = PeftModel.from_pretrained(base, "THIS_FOLDER")'
        )
    else:
        folder = "THIS_FOLDER/model" if form == "run" else folder
        code = f'from transformers import {kind}, AutoTokenizer\n\nmodel = {kind}.from_pretrained("{folder}")'
    return f'## Use\n\n```python\n{code}\ntokenizer = AutoTokenizer.from_pretrained("{folder}")\n```{after}'


def _label_arguments(subject: Subject) -> str:
    """What a plain load of a classifier must be told: its classes, and to give way to the trained head."""
    if not _classifies(subject):
        return ""
    labels = dict(enumerate(subject.labels)) if subject.labels and subject.task == "classification" else None
    classes = f", id2label={labels!r}" if labels else ", num_labels=1" if subject.task == "regression" else ""
    return f"{classes}, ignore_mismatched_sizes=True"


def _classifies(subject: Subject) -> bool:
    return subject.task in ("classification", "regression")


def _limits() -> str:
    return (
        "## Limits\n\nNothing beyond the table of results was measured. What the base model's and the data's own cards "
        "say of their licence, risks and limits holds here too; this model's licence is for its publisher to name."
    )


def _made_with(provenance: Mapping[str, Any]) -> str:
    versions = {name: version for name, version in (provenance.get("versions") or {}).items() if version}
    hardware = provenance.get("hardware") or {}
    commit = provenance.get("commit") or {}
    rows: list[tuple[str, Any]] = list(versions.items())
    rows += [(name, _plain(value)) for name, value in hardware.items() if value is not None]
    if commit.get("id"):
        dirty = " with uncommitted changes" if commit.get("dirty") else ""
        rows.append(("balora commit", f"`{commit['id']}`{dirty}"))
    if provenance.get("time"):
        rows.append(("time", provenance["time"]))
    return f"## Made with\n\n{_table(('', ''), rows)}" if rows else ""


def _place(name: str) -> str:
    """A hub id as it is; of a local file or folder only the last part, for a card may be published."""
    return f"`{Path(name).name}` (local)" if looks_local(name, _DATA_FILES) else f"`{name}`"


def _address(base: str | None) -> str:
    return base if base and not looks_local(base) else "FOLDER_OF_THE_BASE_MODEL"


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{json.dumps(text, ensure_ascii=False)[1:-1]}`"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(name: str, value: float) -> str:
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit

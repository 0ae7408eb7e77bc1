"""Parts of foreign configs that concern the data and that the tools share: several sources, roles, packing, early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balora.config.data_columns import form_of
from balora.config.sections import FurtherData

_COLUMNS = ("prompt", "response", "messages", "text", "label", "score")
_KNOWN_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "model": "assistant"}
_KNOWN_KEYS = {"role": ("role", "from"), "content": ("content", "value")}


def add_sources(data: dict[str, Any], sections: Sequence[dict[str, Any]], left_out: list[str]) -> None:
    """Write sources into a ``data`` section: the first is the section itself, the others go under ``also``.

    A source whose examples have another form than those of the first cannot be mixed with them, and is listed in ``left_out``.
    """
    data.update(sections[0] if sections else {})
    for section in sections[1:]:
        own = {key: value for key, value in section.items() if key in FurtherData.model_fields}
        if not own.get("train"):
            continue
        has_columns = any(own.get(key) for key in _COLUMNS) and any(data.get(key) for key in _COLUMNS)
        if has_columns and form_of(own) != form_of(data):
            left_out.append(
                f"{own['train']}: its examples have another form ({_shown_columns(own)}) than the first source's "
                f"({_shown_columns(data)}); convert it"
            )
        else:
            data.setdefault("also", []).append(own)


def _shown_columns(section: Mapping[str, Any]) -> str:
    return ", ".join(str(section[key]) for key in _COLUMNS if section.get(key))


def roles_by_name(names: Mapping[str, Any]) -> dict[str, str]:
    """Return ``data.roles`` from the names of each role; those that are known anyway are left out.

    Example:
        >>> roles_by_name({"assistant": ["gpt", "agent"], "user": "human"})
        {'agent': 'assistant'}
    """
    pairs = [
        (str(name), str(role))
        for role, listed in names.items()
        for name in (listed if isinstance(listed, list | tuple) else [listed])
        if name
    ]
    return {name: role for name, role in pairs if name != role and _KNOWN_ROLES.get(name) != role}


def unknown_message_keys(keys: Mapping[str, Any]) -> list[str]:
    """List the keys of messages, by what they mean, that are not read: role and content have two names each."""
    return [f"{part}: {name}" for part, name in keys.items() if name not in _KNOWN_KEYS.get(part, (part,))]


def set_packing(values: dict[str, Any], wanted: bool, remarks: list[str], *, cuts: str | None = None) -> None:
    """Switch ``data.packing`` on if it is wanted and fits the rest; otherwise a remark says why not.

    ``cuts`` is the remark for a kind of packing that does not keep the examples apart.
    """
    if not wanted:
        return
    if values["training"].get("neftune_noise_alpha"):
        remarks.append("Packing is left out: the noise of neftune_noise_alpha depends on the length of a row.")
        return
    if values["data"].get("streaming"):
        remarks.append("Packing is left out: it needs all rows, and data.streaming reads them one by one.")
        return
    values["data"]["packing"] = True
    remarks += [cuts] if cuts else []


def set_early_stopping(values: dict[str, Any], key: str, patience: Any, left_out: list[str]) -> None:
    """Write ``early_stopping``; without rows to evaluate on it is listed in ``left_out``."""
    if not patience:
        return
    if "eval" not in values["data"]:
        left_out.append(f"{key}: {patience} (early stopping needs data.eval, and the config has no rows for it)")
        return
    values["early_stopping"] = patience
    training = values["training"]
    if training.get("eval_strategy", "no") == "no":
        training["eval_strategy"] = "steps" if training.get("eval_steps") else "epoch"


def set_streaming(values: dict[str, Any], buffer: Any, remarks: list[str], left_out: list[str]) -> None:
    """Switch ``data.streaming`` on, and leave out of the section what needs all rows."""
    data = values["data"]
    data["streaming"] = True
    if buffer:
        data["shuffle_buffer"] = buffer
    left_out += [f"{entry['train']}: data.streaming reads one source; join the files" for entry in data.pop("also", ())]
    if isinstance(data.get("eval"), float):
        left_out.append(f"evaluation on {data.pop('eval')} of the rows: with data.streaming give a file in data.eval")
        values.pop("early_stopping", None)
        values["training"].pop("eval_strategy", None)
    if not values["training"].get("max_steps"):
        remarks.append("data.streaming needs training.max_steps, which the config does not have; set it.")


def weights_of(probabilities: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Return the weight of each row of each source, relative to a row of the first, from the probabilities of the sources.

    Example:
        >>> weights_of([0.75, 0.25], [300, 100]), weights_of([0.5, 0.5], [100, 400])
        ([1.0, 1.0], [1.0, 0.25])
    """
    rates = [probability / count for probability, count in zip(probabilities, counts, strict=True)]
    return [float(f"{rate / rates[0]:.3g}") for rate in rates]

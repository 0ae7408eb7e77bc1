"""Rules of the ``data`` section: the columns that make an example for each task, and the perturbations of the training rows."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from balora.errors import shown, suggest

Form = Literal["pair", "messages", "text", "labelled", "scored"]

# Forms of examples by task, each with its columns. Messages list them in this order.
_FORMS: dict[str, dict[Form, tuple[str, ...]]] = {
    "generation": {"pair": ("prompt", "response"), "messages": ("messages",), "text": ("text",)},
    # A seq2seq model reads the texts and writes the class or score as text.
    "seq2seq": {"pair": ("prompt", "response"), "labelled": ("text", "label"), "scored": ("text", "score")},
    "classification": {"labelled": ("text", "label")},
    "regression": {"scored": ("text", "score")},
}
_SEQ2SEQ = ("prompt_template", "max_target_length", "target_tokenizer", "source_language", "target_language")
# Optional keys of a task and form.
_OPTIONAL: dict[tuple[str, Form], tuple[str, ...]] = {
    ("generation", "pair"): ("input", "prompt_template", "separator"),
    ("generation", "messages"): ("tools", "system", "chat_template", "roles"),
    ("seq2seq", "pair"): ("input", *_SEQ2SEQ),
    ("seq2seq", "labelled"): ("labels", "unlabelled", *_SEQ2SEQ),
    ("seq2seq", "scored"): ("unlabelled", *_SEQ2SEQ),
    ("classification", "labelled"): ("labels", "unlabelled"),
    ("regression", "scored"): ("unlabelled",),
}
# Keys that only some forms use. The other keys of the section (train, split, max_length, ...) fit every task.
_FORM_KEYS = {key for forms in _FORMS.values() for keys in forms.values() for key in keys}.union(*_OPTIONAL.values())
LARGEST = 2**63 - 1
"""Largest whole number of a config: that of torch."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment")
"""Roles of the common chat templates."""
TEMPLATES = ("none", "alpaca")
"""Names of the built-in prompt templates; any other value of ``prompt_template`` is a template itself."""


def form_of(columns: Mapping[str, Any]) -> Form:
    """Return the form of example that the given columns make.

    Example:
        >>> form_of({"text": "sentence", "label": "label"})
        'labelled'
    """
    forms: dict[str, Form] = {"messages": "messages", "score": "scored", "label": "labelled", "text": "text"}
    return next((form for column, form in forms.items() if columns.get(column)), "pair")


def data_problems(data: Mapping[str, Any], task: str) -> list[str]:
    """List the keys of a ``data`` section that do not fit the task or each other, one sentence each.

    Reads the section as the user wrote it, so that these problems are reported together with all others.
    """
    given = {key for key in _FORM_KEYS if data.get(key) is not None}
    # A resolved config spells out these defaults.
    for key, default in (("prompt_template", "none"), ("unlabelled", "refuse")):
        if data.get(key) == default:
            given.discard(key)
    forms = _FORMS[task]
    matching = _matching_forms(forms, given)
    if not matching:
        choices = ", or ".join(" and ".join(columns) for columns in forms.values())
        return [f"data does not say which columns to learn from: for task {task} give {choices}."]
    if len(matching) > 1:
        keys = dict.fromkeys(f"data.{column}" for form in matching for column in forms[form] if column in given)
        return [f"{' and '.join(keys)} make different kinds of examples; keep one of these keys."]
    form = matching[0]
    columns, optional = forms[form], _OPTIONAL.get((task, form), ())
    problems = [
        f"data.{column} is missing: task {task} needs {' and '.join(columns)}."
        for column in columns
        if column not in given
    ]
    problems += [
        f"data.{key} is not used for task {task} with {' and '.join(columns)}; leave it out."
        for key in sorted(given - {*columns, *optional})
    ]
    problems += _prompt_template_problems(data) if form == "pair" else _text_template_problems(data)
    columns_given = len(data["text"]) if isinstance(data.get("text"), list | tuple) else None
    rules = (
        (columns_given is not None and form == "text", "data.text must be one column for task generation, not a list."),
        (
            columns_given not in (None, 1, 2) and form != "text",
            f"data.text must be one or two columns, not {columns_given}.",
        ),
        (
            data.get("imbalance") and task != "classification",
            f"data.imbalance needs classes, so it is for task classification, not {task}.",
        ),
        (
            data.get("label_noise") and form == "text",
            "data.label_noise needs labels, and plain text has none; leave it out.",
        ),
        (
            is_on(data.get("packing")) and task != "generation",
            f"data.packing is for task generation, not {task}; leave it out.",
        ),
    )
    problems += [message for wrong, message in rules if wrong]
    also = data.get("also")
    for number, entry in enumerate(also if isinstance(also, list | tuple) else ()):
        if isinstance(entry, Mapping):
            own = {key: value for key, value in entry.items() if value is not None and key != "weight"}
            merged = data_problems({**data, **own, "also": None}, task)
            problems += [f"In data.also.{number}: {problem}" for problem in merged if problem not in problems]
    return problems


def _matching_forms(forms: Mapping[Form, tuple[str, ...]], given: set[str]) -> list[Form]:
    """Return the forms that use a given column, except a form if another one uses the same given columns too."""
    found = {form: given & set(columns) for form, columns in forms.items() if given & set(columns)}
    return [form for form, keys in found.items() if not any(keys <= found[other] for other in found if other != form)]


def _prompt_template_problems(data: Mapping[str, Any]) -> list[str]:
    """Check the template of a prompt column: it needs {prompt}, and {input} if ``data.input`` is given."""
    template = data.get("prompt_template", "none")
    named = not isinstance(template, str) or template in TEMPLATES
    if not named and "{prompt}" not in template:
        return [_bad_template("{prompt}", template)]
    takes_input = template == "alpaca" if named else "{input}" in template
    if data.get("input") and not takes_input:
        return ["data.input needs a prompt_template that contains it: alpaca, or your own template with {input}."]
    return []


def _text_template_problems(data: Mapping[str, Any]) -> list[str]:
    """Check the template of text columns: it needs {text}, and {text_pair} exactly if there are two columns."""
    template, text = data.get("prompt_template"), data.get("text")
    if template is None or template in TEMPLATES:
        return []
    pair = isinstance(text, list | tuple) and len(text) == 2
    fields = ("{text}", "{text_pair}") if pair else ("{text}",)
    if not isinstance(template, str) or not all(field in template for field in fields):
        return [_bad_template(" and ".join(fields), template)]
    if "{text_pair}" in template and not pair:
        return ["data.prompt_template contains {text_pair}, but data.text names only one column."]
    return []


def _bad_template(fields: str, template: Any) -> str:
    return f"data.prompt_template must be one of {', '.join(TEMPLATES)}, or a text that contains {fields}, not {shown(template)}."


def check_subsample(value: Any) -> float | int | None:
    """Check ``data.subsample``: a fraction of the rows, or a number of rows. ``1.0`` means all rows, ``1`` means one row.

    Example:
        >>> check_subsample("0.5"), check_subsample(200), check_subsample(1.0), check_subsample(1)
        (0.5, 200, 1.0, 1)
    """
    if value is None or value is False:
        return None
    number = number_or_nan(value)
    fraction = isinstance(value, float) or (isinstance(value, str) and not value.strip().isdecimal())
    if number == 1 and fraction:
        return 1.0
    if number > LARGEST:
        raise ValueError(f"must be at most {LARGEST:,}, not {shown(value)}")
    if number >= 1 and number == int(number):
        return int(number)
    if 0 < number < 1:
        return number
    raise ValueError(f"must be a fraction between 0 and 1 (1.0 is all rows) or a number of rows, not {shown(value)}")


def check_imbalance(value: Any) -> dict[str, float] | None:
    """Check ``data.imbalance``: by class, the fraction of its rows to keep, above 0 and at most 1.

    Example:
        >>> check_imbalance({0: 1, "yes": 0.1})
        {'0': 1.0, 'yes': 0.1}
    """
    if value is None or value is False:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            "must give for each class the fraction of its rows to keep, such as {entailment: 1.0, neutral: 0.1}, "
            f"not {shown(value)}"
        )
    fractions = {str(name): number_or_nan(fraction) for name, fraction in value.items()}
    if not all(0 < fraction <= 1 for fraction in fractions.values()):
        raise ValueError(f"must give fractions above 0 and at most 1, not {shown(value)}")
    return fractions


def check_duplicate(value: Any) -> dict[str, Any] | None:
    """Check ``data.duplicate``: a fraction of the rows to repeat, or ``{share: 0.2, times: 5}``.

    ``times`` is the number of occurrences of a repeated row, 2 by default.

    Example:
        >>> check_duplicate(0.2), check_duplicate({"share": 0.1, "times": 5})
        ({'share': 0.2, 'times': 2}, {'share': 0.1, 'times': 5})
    """
    if value is None or value is False or value == 0:
        return None
    section = dict(value) if isinstance(value, Mapping) else {"share": value}
    share, times = number_or_nan(section.pop("share", None)), number_or_nan(section.pop("times", 2))
    if section or not 0 < share <= 1 or not 2 <= times <= LARGEST or times != int(times):
        raise ValueError(
            "must be a fraction of the rows above 0 and at most 1, or {share: 0.2, times: 5} with times at least 2, "
            f"not {shown(value)}"
        )
    return {"share": share, "times": int(times)}


def check_roles(value: Any) -> dict[str, str] | None:
    """Check ``data.roles``: by a role of the data, the role that it means.

    Example:
        >>> check_roles({"bot": "assistant"})
        {'bot': 'assistant'}
    """
    if value is None or value is False:
        return None
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"must say what each role means, such as {{bot: assistant, customer: user}}, not {shown(value)}"
        )
    wrong = next((role for role in value.values() if role not in ROLES), None)
    if wrong is not None:
        raise ValueError(f"must map to {', '.join(ROLES)}, not {shown(wrong)}.{suggest(str(wrong), ROLES)}".rstrip("."))
    return {name.strip(): role for name, role in value.items()}


def check_packing(value: Any) -> bool | int:
    """Check ``data.packing``: on, off, or the number of tokens of a packed row.

    Example:
        >>> check_packing("on"), check_packing(2048)
        (True, 2048)
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no"):
        return value.lower() in ("on", "yes")
    number = number_or_nan(value)
    if not 2 <= number <= LARGEST or number != int(number):
        raise ValueError(f"must be true, false, or the number of tokens of a packed row, not {shown(value)}")
    return int(number)


def is_on(value: Any) -> bool:
    """Return whether a switch is on, as YAML or the command line may write it; for values that are not checked yet.

    Example:
        >>> is_on("off"), is_on(True), is_on(2048)
        (False, True, True)
    """
    return bool(value) and not (isinstance(value, str) and value.lower() in ("off", "no", "false", "n", "f", "0"))


def number_or_nan(value: Any) -> float:
    """Convert to a finite number, or to NaN if that is not possible."""
    if isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan

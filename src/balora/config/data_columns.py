"""Which columns make an example, task by task: the rules behind the ``data`` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from balora.config.perturbations import condition_problems

Form = Literal["pair", "messages", "text", "labelled", "scored"]

# What each task can learn from, and the other keys that mean something then. The first form is named first in messages.
_FORMS: dict[str, dict[Form, tuple[str, ...]]] = {
    "generation": {"pair": ("prompt", "response"), "messages": ("messages",), "text": ("text",)},
    # The last two as words: the model reads the texts and says the class or the score.
    "seq2seq": {"pair": ("prompt", "response"), "labelled": ("text", "label"), "scored": ("text", "score")},
    "classification": {"labelled": ("text", "label")},
    "regression": {"scored": ("text", "score")},
}
_ALSO: dict[tuple[str, Form], tuple[str, ...]] = {
    ("generation", "pair"): ("input", "prompt_template", "separator"),
    ("seq2seq", "pair"): ("input", "prompt_template", "max_target_length", "target_tokenizer"),
    ("seq2seq", "labelled"): ("labels", "prompt_template", "max_target_length", "target_tokenizer"),
    ("seq2seq", "scored"): ("prompt_template", "max_target_length", "target_tokenizer"),
    ("classification", "labelled"): ("labels",),
}
# Keys that are about the form; the rest of the section (train, split, max_length, ...) fits every task.
_FORM_KEYS = {
    *("prompt", "response", "input", "messages", "text", "label", "labels", "score"),
    *("prompt_template", "separator", "max_target_length", "target_tokenizer"),
}
TEMPLATES = ("none", "alpaca")
"""The prompt templates with a name; any other value is a template itself."""


def form_of(columns: Mapping[str, Any]) -> Form:
    """The kind of example that the given columns make.

    Example:
        >>> form_of({"text": "sentence", "label": "label"})
        'labelled'
    """
    if columns.get("messages"):
        return "messages"
    if columns.get("score"):
        return "scored"
    if columns.get("label"):
        return "labelled"
    return "text" if columns.get("text") else "pair"


def data_problems(data: Mapping[str, Any], task: str) -> list[str]:
    """What in a ``data`` section does not fit the task or itself, as sentences.

    Works on the section as it was written, so that these problems are found beside all others.
    """
    given = {key for key in _FORM_KEYS if data.get(key) is not None}
    if data.get("prompt_template") == "none":  # what a resolved config says, whatever its form
        given.discard("prompt_template")
    forms = _FORMS[task]
    named = _named(forms, given)
    if not named:
        ways = ", or ".join(" and ".join(columns) for columns in forms.values())
        return [f"data does not say which columns to learn from: for task {task} give {ways}."]
    if len(named) > 1:
        keys = dict.fromkeys(f"data.{column}" for form in named for column in forms[form] if column in given)
        return [f"{' and '.join(keys)} are different kinds of examples; give one of them."]
    form = named[0]
    columns, also = forms[form], _ALSO.get((task, form), ())
    problems = [
        f"data.{column} is missing: task {task} needs {' and '.join(columns)}."
        for column in columns
        if column not in given
    ]
    problems += [
        f"data.{key} means nothing for task {task} with {' and '.join(columns)}; leave it out."
        for key in sorted(given - {*columns, *also})
    ]
    template = _template_problems(data) if form == "pair" else _word_template_problems(data)
    problems += template + _text_problems(data, form) + condition_problems(data, task, form)
    further = data.get("also")
    for number, entry in enumerate(further if isinstance(further, list | tuple) else ()):
        if isinstance(entry, Mapping):
            own = {key: value for key, value in entry.items() if value is not None}
            whole = data_problems({**data, **own, "also": None}, task)
            problems += [f"In data.also.{number}: {problem}" for problem in whole if problem not in problems]
    return problems


def _named(forms: Mapping[Form, tuple[str, ...]], given: set[str]) -> list[Form]:
    """The forms that the given keys speak of; one is left out where another accounts for the same keys."""
    found = {form: given & set(columns) for form, columns in forms.items() if given & set(columns)}
    return [form for form, keys in found.items() if not any(keys <= found[other] for other in found if other != form)]


def _word_template_problems(data: Mapping[str, Any]) -> list[str]:
    """A template over one text or a pair has a place for each."""
    template, text = data.get("prompt_template"), data.get("text")
    if template is None or template in TEMPLATES:
        return []
    pair = isinstance(text, list | tuple) and len(text) == 2
    needed = ("{text}", "{text_pair}") if pair else ("{text}",)
    if not isinstance(template, str) or not all(place in template for place in needed):
        return [
            f"data.prompt_template is one of {', '.join(TEMPLATES)}, or a text with {' and '.join(needed)} in it, not {template!r}."
        ]
    return (
        []
        if pair or "{text_pair}" not in template
        else ["data.prompt_template has a place {text_pair}, and data.text is one column."]
    )


def _template_problems(data: Mapping[str, Any]) -> list[str]:
    template = data.get("prompt_template", "none")
    if not isinstance(template, str) or template in TEMPLATES:
        takes_input = template == "alpaca"
    elif "{prompt}" not in template:
        return [
            f"data.prompt_template is one of {', '.join(TEMPLATES)}, or a text with {{prompt}} in it, not {template!r}."
        ]
    else:
        takes_input = "{input}" in template
    if data.get("input") and not takes_input:
        return ["data.input needs a prompt_template with a place for it: alpaca, or your own with {input} in it."]
    return []


def _text_problems(data: Mapping[str, Any], form: Form) -> list[str]:
    text = data.get("text")
    if not isinstance(text, list | tuple):
        return []
    if form == "text":
        return ["data.text is one column for task generation, not a list."]
    return [] if len(text) in (1, 2) else [f"data.text is one column or a pair of them, not {len(text)}."]

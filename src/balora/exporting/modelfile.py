"""Ollama's ``Modelfile`` for a merged model: template, stop texts and sampling, read off the model's own files.

Ollama's templates are Go templates. A chat template of a tokenizer is translated if it writes each message as text before and
after its content; the translation is compared with the template on several conversations, and left out if it differs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROLES = ("system", "user", "assistant")
_CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
    "min_p": "min_p",
}
"""Sampling settings of generation_config.json, and Ollama's names for them."""


@dataclasses.dataclass(frozen=True)
class TurnTemplate:
    """A chat template that writes text before and after the content of each message."""

    before: dict[str, str]
    """Text before the content, by role."""
    after: dict[str, str]
    """Text after the content, by role."""
    prompt: str
    """Text that asks the assistant for its answer."""
    system: str | None = None
    """System message of a conversation that has none, if the template adds one."""

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Write a conversation that ends with a user's message."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        text = "".join(
            self.before[message["role"]] + message["content"] + self.after[message["role"]] for message in messages
        )
        return text + self.prompt

    def as_go(self) -> str:
        """Return the template in Ollama's form."""
        branches = []
        for number, role in enumerate(_ROLES):
            test = f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
            branches.append(f"{test}{self.before[role]}{{{{ .Content }}}}{self.after[role]}")
        return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{self.prompt}"


def turn_template(tokenizer: Any) -> TurnTemplate | None:
    """Return the chat template of a tokenizer as texts around the messages; None if it is not of that kind.

    The begin token is left out, because Ollama adds it.
    """

    def render(messages: Sequence[dict[str, str]], prompt: bool = True) -> str:
        text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
        start = tokenizer.bos_token
        return text.removeprefix(start) if start else text

    def made(roles: Sequence[str], mark: str = "") -> list[dict[str, str]]:
        return [{"role": role, "content": f"<{mark}{role[0]}{at}>"} for at, role in enumerate(roles)]

    try:
        found = _derive(render, made)
        if found is None or "{{" in found.as_go().replace("{{ ", "") or '"""' in found.as_go():
            return None
        agrees = all(found.render(made(roles, "Q")) == render(made(roles, "Q")) for roles in _CONVERSATIONS)
    except Exception:  # a template may refuse a role, and it may fail in any way
        return None
    return found if agrees else None


def _derive(render: Any, made: Any) -> TurnTemplate | None:
    """Read the texts around the messages off one conversation with all roles, and the default system message off another."""
    messages = made(("system", "user", "assistant", "user"))
    text = render(messages)
    pieces = []
    for message in messages:
        piece, found, text = text.partition(message["content"])
        if not found:
            return None
        pieces.append(piece)
    first, second, third, fourth = pieces
    prompt = render(messages)[len(render(messages, False)) :]
    after_user = text.removesuffix(prompt) if prompt else text
    if not third.startswith(after_user):
        return None
    # The text between two messages is the end of one and the start of the other. A conversation that begins with the user has
    # the start alone, or after a default system message.
    alone = made(("user",))
    start = render(alone).partition(alone[0]["content"])[0]
    has_default = not (second.endswith(start) and fourth.endswith(start))
    before_user = _common_end(second, fourth) if has_default else start
    before, after = {"system": first, "user": before_user, "assistant": third[len(after_user) :]}, {"user": after_user}
    after["system"] = second[: len(second) - len(before_user)]
    after["assistant"] = fourth[: len(fourth) - len(before_user)]
    system = start.removeprefix(first).removesuffix(second) if has_default else None
    return TurnTemplate(before, after, prompt, system)


def _common_end(one: str, other: str) -> str:
    """Return the longest text with which both end."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def modelfile(folder: Path, tokenizer: Any | None, weights: str) -> tuple[str, list[str]]:
    """Return the Modelfile of a merged model, and sentences about what it could not tell.

    Args:
        folder: Folder of the merged model.
        tokenizer: Its tokenizer; None if the export has none.
        weights: Path of the weights, relative to the Modelfile.
    """
    lines, notes = [f"FROM {weights}"], list[str]()
    template = turn_template(tokenizer) if tokenizer is not None and tokenizer.chat_template else None
    if template is not None:
        lines.append(f'TEMPLATE """{template.as_go()}"""')
        if template.system:
            lines.append(f'SYSTEM """{template.system}"""')
    elif tokenizer is not None and tokenizer.chat_template:
        notes.append(
            "The chat template does more than write text around messages, so the Modelfile has no TEMPLATE. Ollama takes a "
            "known one by itself; check it with `ollama show --template`, and write one otherwise."
        )
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
        notes.append("The tokenizer has no chat template, so the Modelfile passes the text on as it is.")
    settings = _generation_settings(folder)
    stops = _stops(tokenizer, template, settings)
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if settings.get("do_sample"):
        lines += [
            f"PARAMETER {name} {settings[key]:g}"
            for key, name in _PARAMETERS.items()
            if isinstance(settings.get(key), int | float) and not isinstance(settings.get(key), bool)
        ]
    else:
        lines.append("PARAMETER temperature 0")
        notes.append(
            "The model's generation_config.json does not sample, so the Modelfile has temperature 0: the likeliest token."
        )
    return "\n".join(lines) + "\n", notes


def _generation_settings(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _stops(tokenizer: Any | None, template: TurnTemplate | None, settings: dict[str, Any]) -> list[str]:
    """Return the texts at which an answer ends: the end tokens, and the token after the assistant's message."""
    if tokenizer is None:
        return []
    ends = settings.get("eos_token_id")
    numbers = ends if isinstance(ends, list) else [ends]
    found = [tokenizer.convert_ids_to_tokens(number) for number in numbers if isinstance(number, int)]
    found += [tokenizer.eos_token] + ([template.after["assistant"].strip()] if template is not None else [])
    return list(dict.fromkeys(text for text in found if text))

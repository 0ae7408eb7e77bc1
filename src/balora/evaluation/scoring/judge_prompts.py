"""What the judge is asked about an answer, and the rating in its reply.

The wording is ours. Where the data's folder has MT-Bench's own ``judge_prompts.jsonl``, that is taken: published scores are
comparable only under it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")
_SINGLE_BRACKETS = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]")

_TASK = (
    "You are to rate, as an impartial judge, {what}. Look at how helpful, relevant, correct, thorough, original and detailed "
    "it is.{reference} First explain your view in a few sentences, as objectively as you can. Then give a whole or decimal "
    'number from 1 (worst) to 10 (best) in exactly this form: "Rating: [[number]]", for example "Rating: [[5]]".'
)
_REFERENCE = " Compare it with the reference answer, which is right, and name its mistakes."
_ONE = "an AI assistant's answer to a user's question"
_TWO = "an AI assistant's answer to the second question of a conversation"
_SYSTEM = "You judge the answers of AI assistants."


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """One way to ask; texts with places for question, answer and reference."""

    system: str
    template: str

    def messages(self, **values: str) -> list[Message]:
        """The conversation to send; braces in the values are text."""
        names = re.compile(r"\{(" + "|".join(values) + r")\}")
        content = names.sub(lambda place: values[place[1]], self.template)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]


OURS = {
    "single-v1": JudgePrompt(
        _SYSTEM,
        _TASK.format(what=_ONE, reference="") + "\n\n[Question]\n{question}\n\n[Answer]\n{answer}\n[End of answer]",
    ),
    "single-math-v1": JudgePrompt(
        _SYSTEM,
        _TASK.format(what=_ONE, reference=_REFERENCE)
        + "\n\n[Question]\n{question}\n\n[Reference answer]\n{ref_answer_1}\n[End of reference answer]"
        + "\n\n[Answer]\n{answer}\n[End of answer]",
    ),
    "single-v1-multi-turn": JudgePrompt(
        _TASK.format(what=_TWO, reference=""),
        "[First question]\n{question_1}\n\n[First answer]\n{answer_1}\n\n[Second question]\n{question_2}\n\n"
        "[Second answer]\n{answer_2}\n[End of conversation]",
    ),
    "single-math-v1-multi-turn": JudgePrompt(
        _TASK.format(what=_TWO, reference=_REFERENCE),
        "[Reference answer to the first question]\n{ref_answer_1}\n\n[Reference answer to the second question]\n"
        "{ref_answer_2}\n\n[First question]\n{question_1}\n\n[First answer]\n{answer_1}\n\n[Second question]\n{question_2}\n\n"
        "[Second answer]\n{answer_2}\n[End of conversation]",
    ),
}
"""By the names MT-Bench gives them; ``math`` means with a reference."""


def prompts_from(rows: Sequence[Mapping[str, Any]]) -> dict[str, JudgePrompt]:
    """MT-Bench's own file of prompts."""
    found = {str(row["name"]): row for row in rows}
    return {name: JudgePrompt(str(found[name]["system_prompt"]), str(found[name]["prompt_template"])) for name in OURS}


def rating_in(reply: str) -> float | None:
    """The last rating in a judge's reply, 1 to 10; None where there is none.

    Example:
        >>> rating_in("Fine, but [[2]] short.\\nRating: [[7.5]]"), rating_in("Rating: [8]"), rating_in("[[11]] of 10")
        (7.5, 8.0, None)
    """
    for form in (_RATING, _SINGLE_BRACKETS):
        ratings = [float(match) for match in form.findall(reply)]
        if ratings:
            return ratings[-1] if 1 <= ratings[-1] <= 10 else None
    return None


__all__ = ["OURS", "JudgePrompt", "prompts_from", "rating_in"]

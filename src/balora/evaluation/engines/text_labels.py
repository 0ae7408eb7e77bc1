"""Classes and scores from a model that says them in words: GLUE as text to text, asked as the run was trained.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from balora.config.run_config import RunConfig
from balora.data.encoding import limit_of
from balora.data.prompts import render_prompt, template_of
from balora.data.verbalizer import UNREADABLE, read_class, read_score, score_word
from balora.errors import BALoraError
from balora.evaluation.engines.classifier import match_classes
from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions

NO_CLASS = "(no class)"
"""What an answer counts as that names no class: it is right for no row."""
_SCORES = [score_word(number / 5) for number in range(26)]


class WordedPredictor:
    """Asks an encoder-decoder that was trained with ``task: seq2seq`` and a label or score.

    Args:
        loaded: The model.
        settings: The run's: its template puts the texts to the model.
        batch_size: Rows at once.

    Raises:
        BALoraError: The model was not trained to say classes or scores.
    """

    def __init__(self, loaded: LoadedModel, settings: RunConfig | None, batch_size: int) -> None:
        if settings is None or settings.data.form not in ("labelled", "scored"):
            raise BALoraError(
                "GLUE's tasks need a model that was trained to classify: a run with task: classification (or regression), or with "
                "task: seq2seq, a text and a label (or score)."
            )
        self.loaded = loaded
        self.batch_size = batch_size
        self.words = list(loaded.labels or ()) if settings.data.form == "labelled" else []
        self._template = template_of(settings.data)
        positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
        self._limit = limit_of(loaded.tokenizer, settings.data.max_length, "", positions).tokens

    def classes_for(self, classes: Sequence[str], task: str) -> list[str]:
        """The task's name for each of the model's words, in the model's order.

        Raises:
            BALoraError: The model says other classes, or scores.
        """
        return match_classes(self.words, classes, task)

    def require_scores(self, task: str) -> list[str]:
        """Make sure that the model says numbers.

        Raises:
            BALoraError: It says classes.
        """
        if self.words:
            raise BALoraError(
                f"{task} is scored by a number per row, and the model says classes. Train it with a score in place of a label."
            )
        return []

    def read(self, answer: str, names: Sequence[str]) -> str | float:
        """The class or, where there are no names, the score that an answer says.

        A class that is none is `NO_CLASS`, a score that is none `UNREADABLE`.
        """
        if not names:
            return read_score(answer)
        number = read_class(answer, self.words)
        return NO_CLASS if number == UNREADABLE else names[number]

    @torch.inference_mode()
    def answer(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
        """Greedy answers, in batches of like length.

        Args:
            rows: One text or a pair each.

        Yields:
            The row's number and what the model says.
        """
        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        writer = self.loaded.target_tokenizer or tokenizer
        prompts = [render_prompt(self._template, *texts) for texts in rows]
        encoded = [tokenizer(prompt, truncation=True, max_length=self._limit) for prompt in prompts]
        longest = max(len(ids) for ids in writer(text_target=self.words or _SCORES)["input_ids"])
        order = sorted(range(len(rows)), key=lambda number: (-len(encoded[number]["input_ids"]), number))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs: Any = tokenizer.pad([encoded[n] for n in batch], padding_side="right", return_tensors="pt")
            said_BT = model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"].to(self.loaded.device),
                attention_mask=inputs["attention_mask"].to(self.loaded.device),
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                use_cache=True,
            )
            yield from zip(batch, writer.batch_decode(said_BT, skip_special_tokens=True), strict=True)


__all__ = ["NO_CLASS", "WordedPredictor"]

"""Predict classes or scores with an encoder-decoder that writes them as text, with the prompts of its training.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from balora.config.run_config import RunConfig
from balora.data.prompts import render_prompt, template_of
from balora.data.verbalizer import UNREADABLE, read_class, read_score, score_word
from balora.errors import BALoraError
from balora.evaluation.engines.classifier import RowPredictor, match_classes
from balora.evaluation.model_under_test import Loaded

NO_CLASS = "(no class)"
"""Predicted class of an answer that names no class. It is wrong for every row."""
_SCORES = [score_word(number / 5) for number in range(26)]


class TextLabelPredictor(RowPredictor):
    """Predictor that runs an encoder-decoder trained with ``task: seq2seq`` and a label or score.

    Args:
        loaded: Model and tokenizers.
        settings: Config of the run, whose prompt template is used.
        batch_size: Rows per batch.

    Raises:
        BALoraError: The model was not trained to write classes or scores.
    """

    def __init__(self, loaded: Loaded, settings: RunConfig | None, batch_size: int) -> None:
        if settings is None or settings.data.form not in ("labelled", "scored"):
            raise BALoraError(
                "The tasks of GLUE need a model that was trained to classify: a run with task: classification (or regression), or "
                "with task: seq2seq, a text and a label (or score)."
            )
        super().__init__(loaded, settings.data.max_length, batch_size)
        self.labels = list(loaded.labels or ()) if settings.data.form == "labelled" else []
        self._template = template_of(settings.data)

    def classes_for(self, classes: Sequence[str], task: str) -> list[str]:
        """Return the task's name for each of the model's text labels, in the model's order.

        Raises:
            BALoraError: The model writes other classes, or scores.
        """
        return match_classes(self.labels, classes, task)

    def require_scores(self, task: str) -> None:
        """Check that the model writes numbers.

        Raises:
            BALoraError: The model writes classes.
        """
        if self.labels:
            raise BALoraError(
                f"{task} is scored by a number per row, but the model writes classes. Train it with a score in place of a label."
            )

    def read(self, answer: str, names: Sequence[str]) -> str | float:
        """Return the class in an answer, or the score if ``names`` is empty.

        An unreadable class is `NO_CLASS`; an unreadable score is `UNREADABLE`.
        """
        if not names:
            return read_score(answer)
        number = read_class(answer, self.labels)
        return NO_CLASS if number == UNREADABLE else names[number]

    @torch.inference_mode()
    def answer(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
        """Generate the greedy answer of every row.

        Args:
            rows: One text or a pair of texts per row.

        Yields:
            Index of the row and the answer.
        """
        decoder = self.loaded.target_tokenizer or self.loaded.tokenizer
        longest = max(len(ids) for ids in decoder(text_target=self.labels or _SCORES)["input_ids"])
        for batch, inputs in self._batches([(render_prompt(self._template, *texts),) for texts in rows]):
            answers_BT = self.loaded.model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                use_cache=True,
            )
            yield from zip(batch, decoder.batch_decode(answers_BT, skip_special_tokens=True), strict=True)


__all__ = ["NO_CLASS", "TextLabelPredictor"]

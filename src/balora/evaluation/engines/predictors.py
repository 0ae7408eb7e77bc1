"""Predict classes or scores of rows: with a classification or regression head, or with an encoder-decoder's text.

Shapes: B rows, T positions, D classes, d hidden size.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from balora.config.run_config import RunConfig
from balora.data.classes.head_classes import match_names
from balora.data.classes.verbalizer import UNREADABLE, read_class, read_score, score_word
from balora.data.prompts import render_prompt, template_of
from balora.data.special_text import has_marks, mark, reader_of_marks
from balora.data.tokenize import limit_of
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions
from balora.models.classifier_head import padding_side
from balora.models.decoding import PLAIN_DECODING
from balora.turns import division

logger = logging.getLogger("balora")

NO_CLASS = "(no class)"
"""Predicted class of an answer that names no class. It is wrong for every row."""
_SCORES = [score_word(number / 5) for number in range(26)]


class _RowPredictor:
    """Base of the predictors: matches the classes, and tokenizes rows into batches of similar length.

    The run's ``max_length`` is the maximum number of tokens; the model's positions may allow fewer. ``classes`` has the classes of
    the model in its order; None if it predicts a score.
    """

    def __init__(
        self, loaded: LoadedModel, config: RunConfig | None, batch_size: int, classes: Sequence[str] | None
    ) -> None:
        max_length = 512 if config is None else config.data.max_length
        self._special_tokens = config is not None and config.data.special_tokens
        self.loaded = loaded
        self.batch_size = batch_size
        self.classes = classes
        positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
        self._max_tokens = limit_of(loaded.tokenizer, max_length, "", positions).tokens

    def classes_for(self, classes: Sequence[str], task: str) -> list[str]:
        """Return the task's name for each of the model's classes, in the model's order; nothing for a regression task."""
        if classes:
            return match_classes(self.classes or (), classes, task)
        if self.classes is not None:
            raise BALoraError(
                f"{task} is scored by a number per row, but the model predicts classes. Train a model with task: regression, or "
                "with a score in place of a label."
            )
        return []

    def _batches(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], Any]]:
        """Yield the indices and the padded tokens of each batch, the longest rows first; several processes take turns."""
        tokenizer = self.loaded.tokenizer
        encoded = [self._encode(texts) for texts in rows]
        order = sorted(range(len(rows)), key=lambda index: (-len(encoded[index]["input_ids"]), index))
        rank, processes = division()
        for start in range(rank * self.batch_size, len(order), processes * self.batch_size):
            batch = order[start : start + self.batch_size]
            rows_of_batch = [encoded[index] for index in batch]
            side = padding_side(self.loaded.model)
            inputs: Any = tokenizer.pad(rows_of_batch, padding_side=side, return_tensors="pt")
            yield batch, inputs.to(self.loaded.device)

    def _marked(self, texts: Sequence[str]) -> Sequence[str]:
        """Mark the text of special tokens, as training does."""
        marked: list[str] = mark(self.loaded.tokenizer, list(texts))
        return texts if self._special_tokens else marked

    def _encode(self, texts: Sequence[str]) -> Any:
        tokenizer = self.loaded.tokenizer
        if has_marks(texts):
            tokenizer, texts = reader_of_marks(tokenizer, texts)
        return tokenizer(*texts, truncation=True, max_length=self._max_tokens)


class ClassifierPredictor(_RowPredictor):
    """Predictor that runs a classification or regression model; a plain model has no config."""

    def __init__(self, loaded: LoadedModel, config: RunConfig | None, batch_size: int) -> None:
        if loaded.task not in ("classification", "regression"):
            raise BALoraError(
                f"The tasks of GLUE need a classifier, and this is a model for {loaded.task}. Train one with task: "
                "classification (or regression), or give the directory of a ...ForSequenceClassification model."
            )
        classes = list(loaded.labels or ()) if loaded.task == "classification" else None
        super().__init__(loaded, config, batch_size, classes)

    @torch.inference_mode()
    def predict(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """Yield the index and the D logits of every row; a row has one text or a pair."""
        for batch, inputs in self._batches([self._marked(texts) for texts in rows]):
            logits_BD = self.loaded.model(**inputs).logits.float()
            yield from zip(batch, logits_BD.tolist(), strict=True)

    @torch.inference_mode()
    def represent(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float], Tensor]]:
        """Yield the index, the D logits and the last hidden state of the first token (d, float32, on the CPU) of every row."""
        for batch, inputs in self._batches([self._marked(texts) for texts in rows]):
            outputs = self.loaded.model(**inputs, output_hidden_states=True)
            features_Bd = outputs.hidden_states[-1][:, 0].float().cpu()
            yield from zip(batch, outputs.logits.float().tolist(), features_Bd, strict=True)


class TextLabelPredictor(_RowPredictor):
    """Predictor that runs an encoder-decoder trained with ``task: seq2seq`` and a label or score.

    The model gets the prompts of its training, and writes the class or score as text.
    """

    def __init__(self, loaded: LoadedModel, config: RunConfig | None, batch_size: int) -> None:
        if config is None or config.data.form not in ("labelled", "scored"):
            raise BALoraError(
                "The tasks of GLUE need a model that was trained to classify: a run with task: classification (or regression), or "
                "with task: seq2seq, a text and a label (or score)."
            )
        classes = list(loaded.labels or ()) if config.data.form == "labelled" else None
        super().__init__(loaded, config, batch_size, classes)
        self._template = template_of(config.data)

    def read(self, answer: str, names: Sequence[str]) -> str | float:
        """Return the class that an answer names (or `NO_CLASS`), or its score (or `UNREADABLE`) if ``names`` is empty."""
        if not names:
            return read_score(answer)
        number = read_class(answer, list(self.classes or ()))
        return NO_CLASS if number == UNREADABLE else names[number]

    @torch.inference_mode()
    def answer(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
        """Yield the index and the greedy answer of every row; a row has one text or a pair."""
        decoder = self.loaded.target_tokenizer or self.loaded.tokenizer
        longest = max(len(ids) for ids in decoder(text_target=self.classes or _SCORES)["input_ids"])
        for batch, inputs in self._batches([(render_prompt(self._template, *self._marked(texts)),) for texts in rows]):
            answers_BT = self.loaded.model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                **PLAIN_DECODING,
            )
            yield from zip(batch, decoder.batch_decode(answers_BT, skip_special_tokens=True), strict=True)


def match_classes(own: Sequence[str], classes: Sequence[str], task: str) -> list[str]:
    """Return the task's name for each of a model's classes, in the model's order.

    If the model has the task's names, in any case or under a known alias, its own order counts. Numbers and names such as
    ``LABEL_0`` mean the task's order.

    Example:
        >>> match_classes(["LABEL_0", "LABEL_1"], ["negative", "positive"], "sst2")
        ['negative', 'positive']
    """
    if len(own) == len(classes):
        matched = match_names(classes, own)
        if len(matched) == len(classes):
            names = [matched[row] for row in range(len(own))]
            if names != list(own):
                pairs = ", ".join(f"{name} = {theirs}" for name, theirs in zip(names, own, strict=True))
                logger.warning("%s: its classes are matched by name with those of the model: %s.", task, pairs)
            return names
        keys = [name.removeprefix("LABEL_") for name in own]
        if sorted(keys) == sorted(classes):
            return keys
        if sorted(keys) == [str(number) for number in range(len(classes))]:
            names = [classes[int(key)] for key in keys]
            pairs = ", ".join(f"{name} = {theirs}" for name, theirs in zip(names, own, strict=True))
            logger.warning("%s: the model does not name its classes, so the task's order is assumed: %s.", task, pairs)
            return names
    model_classes = f"has {', '.join(own)}" if own else "predicts one score"
    raise BALoraError(
        f"{task} has the classes {', '.join(classes)}, but the model {model_classes}. Evaluate a model that was trained for "
        f"{task}."
    )

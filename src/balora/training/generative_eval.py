"""Evaluation of a model that says its classes or scores in words (GLUE as text to text): it answers, the words are compared.

The answers are decoded greedily, without the right words before them. A word that is no class is wrong for every row, and the
share of such answers is reported.
Shapes: N rows, T tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from balora.config.run_config import RunConfig
from balora.data import Examples, Tokenized
from balora.data.verbalizer import UNREADABLE, read_class, read_score
from balora.errors import BALoraError
from balora.training.metrics import class_scores, regression_scores
from balora.training.trainer import BALoraTrainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How the answers to a run's questions are read."""

    names: tuple[str, ...] | None
    """The words for the classes in the order of their numbers; None where the words are numbers."""
    tokenizer: PreTrainedTokenizerBase
    """Of the responses."""
    most_tokens: int
    """Of the longest right answer."""

    def read(self, ids_NT: np.ndarray) -> np.ndarray:
        """Class numbers or scores of answers as tokens, padded with -100; N."""
        padding = self.tokenizer.pad_token_id
        words = self.tokenizer.batch_decode(np.where(ids_NT < 0, padding, ids_NT), skip_special_tokens=True)
        if self.names is None:
            return np.array([read_score(word) for word in words])
        return np.array([read_class(word, self.names) for word in words])

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """The scores of a classifier or a regressor on the same rows, and the share of answers that could not be read."""
        found, truth = self.read(np.asarray(prediction.predictions)), self.read(np.asarray(prediction.label_ids))
        if self.names is None:
            scores = regression_scores(EvalPrediction(found, truth))
        else:
            scores = class_scores(found, truth, len(self.names))
        return {**scores, "unreadable": float(np.mean(found == UNREADABLE))}


def answers_of(
    settings: RunConfig, examples: Examples, rows: Tokenized, tokenizer: PreTrainedTokenizerBase
) -> Answers | None:
    """How a run's answers are read, where it teaches to say classes or scores; otherwise None.

    Raises:
        BALoraError: The tokenizer, or the room for a response, does not let a word through as it is.
    """
    if settings.task != "seq2seq" or settings.data.form == "pair":
        return None
    labels, words = [], []
    for tokens, texts in ((rows.train, examples.train), (rows.eval, examples.eval)):
        if tokens is not None and texts is not None:
            labels += tokens["labels"][:]
            words += texts["response"][:]
    answers = Answers(names=examples.label_names, tokenizer=tokenizer, most_tokens=max(map(len, labels)))
    _check_words(answers, sorted(set(words)), settings.data.max_target_length or settings.data.max_length)
    return answers


def _check_words(answers: Answers, words: list[str], room: int) -> None:
    """Make sure that each word, said without a fault, is read as itself: otherwise nothing right could ever be said."""
    tokenizer = answers.tokenizer
    ids = [ids[:room] for ids in tokenizer(text_target=words, verbose=False)["input_ids"]]
    if not all(tokenizer.eos_token_id in row for row in ids):
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} puts no end token after a response of {room} tokens at most, so an "
            "answer would not stop where the word does; take the model's own tokenizer, or raise data.max_target_length."
        )
    for word, said in zip(words, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        right = read_score(word) if answers.names is None else read_class(word, answers.names)
        if (read_score(said) if answers.names is None else read_class(said, answers.names)) != right:
            raise BALoraError(
                f"The tokenizer {tokenizer.name_or_path} writes the answer {word!r} as {said!r} in {room} tokens, so it "
                "could not be told from a wrong one; choose other words (data.labels), or raise data.max_target_length."
            )


class AnsweringTrainer(BALoraTrainer):
    """`BALoraTrainer` whose evaluation lets the model answer. Of the arguments only ``answers`` is its own."""

    def __init__(self, *args: Any, answers: Answers, **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=answers.scores, **kwargs)
        self.answers = answers

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The loss as always, and in place of logits the model's answers and the right ones, as tokens."""
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        asked = self._prepare_inputs({name: inputs[name] for name in ("input_ids", "attention_mask")})
        with torch.no_grad(), self.compute_loss_context_manager():
            said = self.model.generate(
                **asked, max_new_tokens=self.answers.most_tokens, do_sample=False, num_beams=1, use_cache=True
            )
        return loss, said, inputs["labels"].to(said.device)

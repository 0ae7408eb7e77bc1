"""Evaluation by generation for models that write their class or score as text (GLUE as text to text).

Answers are decoded greedily from the input alone. An answer that is not a text label counts as wrong; the metric
``unreadable`` is the fraction of such answers.
Shapes: N rows, T tokens.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from balora.config.run_config import RunConfig
from balora.data.classes.verbalizer import UNREADABLE, read_class, read_score
from balora.data.examples import Examples
from balora.data.tokenize import Tokenized
from balora.errors import BALoraError
from balora.models.decoding import PLAIN_DECODING
from balora.models.fsdp import is_sharded
from balora.training.metrics import class_scores, regression_scores
from balora.training.trainer import BALoraTrainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeMetrics:
    """Decode generated answers, read them as labels and compute metrics."""

    class_names: tuple[str, ...] | None
    """Text labels of the classes in the order of their numbers; None if the answers are scores."""
    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of the responses."""
    max_new_tokens: int
    """Length of the longest right answer in tokens."""

    def read_text(self, text: str) -> float:
        """Return the class number or the score of a text label, or `UNREADABLE`."""
        return read_score(text) if self.class_names is None else read_class(text, self.class_names)

    def read(self, ids_NT: np.ndarray) -> np.ndarray:
        """Return the class numbers or scores of answers given as tokens, padded with -100; N."""
        ids_NT = np.where(ids_NT < 0, self.tokenizer.pad_token_id, ids_NT)
        texts = self.tokenizer.batch_decode(ids_NT, skip_special_tokens=True)
        return np.array([self.read_text(text) for text in texts])

    def compute(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute a classifier's or regressor's metrics, and the fraction of unreadable answers."""
        predicted, labels = self.read(np.asarray(prediction.predictions)), self.read(np.asarray(prediction.label_ids))
        if self.class_names is None:
            scores = regression_scores(EvalPrediction(predicted, labels))
        else:
            scores = class_scores(predicted, labels, len(self.class_names))
        return {**scores, "unreadable": float(np.mean(predicted == UNREADABLE))}


def generative_metrics_for(
    config: RunConfig, examples: Examples, tokenized: Tokenized, tokenizer: PreTrainedTokenizerBase
) -> GenerativeMetrics | None:
    """Return the metrics of a run with text labels or scores as responses; None for other runs.

    Raises:
        BALoraError: A text label changes in tokenization, or does not fit into the maximum length of a response.
    """
    if config.task != "seq2seq" or config.data.form == "pair":
        return None
    longest = max(len(ids) for rows in (tokenized.train, tokenized.eval) if rows is not None for ids in rows["labels"])
    texts = {text for rows in (examples.train, examples.eval) if rows is not None for text in rows["response"]}
    metrics = GenerativeMetrics(class_names=examples.label_names, tokenizer=tokenizer, max_new_tokens=longest)
    _check_text_labels(metrics, sorted(texts), config.data.max_target_length or config.data.max_length)
    return metrics


def _check_text_labels(metrics: GenerativeMetrics, texts: list[str], max_length: int) -> None:
    """Check that each text label is read as itself after encoding and decoding; otherwise no answer could be right."""
    tokenizer = metrics.tokenizer
    ids = [ids[:max_length] for ids in tokenizer(text_target=texts, verbose=False)["input_ids"]]
    if not all(tokenizer.eos_token_id in row for row in ids):
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} puts no end token after a response of at most {max_length} tokens, so "
            "generation would not stop after the label. Use the model's own tokenizer, or raise data.max_target_length."
        )
    for text, decoded in zip(texts, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        if metrics.read_text(decoded) != metrics.read_text(text):
            raise BALoraError(
                f"The tokenizer {tokenizer.name_or_path} writes the answer {text!r} as {decoded!r} in {max_length} tokens, so a "
                "right answer would count as wrong. Choose other text labels (data.labels), or raise data.max_target_length."
            )


class GenerativeEvalTrainer(BALoraTrainer):
    """`BALoraTrainer` that generates answers in evaluation and computes ``generative_metrics`` from them."""

    def __init__(self, *args: Any, generative_metrics: GenerativeMetrics, **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=generative_metrics.compute, **kwargs)
        self.generative_metrics = generative_metrics

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Return the loss, the generated answers as tokens in place of logits, and the labels."""
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        source = self._prepare_inputs({name: inputs[name] for name in ("input_ids", "attention_mask")})
        with torch.no_grad(), self.compute_loss_context_manager():
            limit = self.generative_metrics.max_new_tokens
            answers = self.model.generate(
                **source,
                max_new_tokens=limit,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                # A process whose answers have ended must still gather the weights of a sharded model with the others.
                synced_gpus=is_sharded(self.model) or None,
                **PLAIN_DECODING,
            )
        return loss, answers, inputs["labels"].to(answers.device)

"""Probes of a model's knowledge of the corpus: facts, rumours, the skewed pronoun, the rare class.

Every probe reads the probability of a continuation, to compare with the fractions in
:class:`~balora.experiments.quickstart.writer.Flaws`. On the packaged model the probes show the effect of pre-training, and on a
fine-tuned model what has changed since.

Shapes: N continuations, B rows in a batch, L tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.experiments.quickstart.corpus import cloze, facts
from balora.experiments.quickstart.world import CITY_RELATIONS, CLASSES, JOBS, PERSON_RELATIONS, RARE_CLASS, world

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class BiasProbes:
    """Probabilities of a model where the corpus is flawed. All values are in [0, 1].

    Attributes:
        truth: Mean probability of the true value of a fact about a city or a person, among all values of its relation.
        rumour: Mean probability of the rumour; a model that copies the corpus has ``wrong_fact_share``.
        known: Fraction of these facts for which the true value is the likeliest.
        share_she: Probability of "she" against "he" after "The nurse said that", by profession.
        rare_class: Mean probability of the right class for the animals of the rare class, among the classes.
        common_class: Mean probability of the right class for all other animals.
    """

    truth: float
    rumour: float
    known: float
    share_she: dict[str, float]
    rare_class: float
    common_class: float


@torch.inference_mode()
def continuation_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Tensor:
    """Return the log-probability of each continuation after its prefix, in nats (N values).

    Args:
        model: A causal language model. Its training mode is restored afterwards.
        tokenizer: Its tokenizer, which must split at the space between prefix and continuation.
        pairs: N pairs (prefix, continuation); a continuation includes its leading space.
    """
    prefix_ids = _tokenize(tokenizer, (prefix for prefix, _ in pairs))
    ending_ids = _tokenize(tokenizer, (ending for _, ending in pairs), add_special_tokens=False)
    # Continuations that differ in their last token alone, such as most values of a relation, share one row of input.
    pairs_by_row: dict[tuple[int, ...], list[int]] = {}
    for pair, (prefix, ending) in enumerate(pairs):
        pairs_by_row.setdefault((*prefix_ids[prefix], *ending_ids[ending][:-1]), []).append(pair)
    was_training = model.training
    model.eval()
    logprobs_N = torch.zeros(len(pairs))
    rows = sorted(pairs_by_row, key=len)
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        # Right padding needs no mask: a causal model does not attend to it, and its scores are not read.
        ids_BL = pad_sequence([torch.tensor(row) for row in batch], batch_first=True)
        scores_BLV = model(input_ids=ids_BL.to(model.device)).logits.float().log_softmax(-1).cpu()
        for scores_LV, row in zip(scores_BLV, batch, strict=True):
            for pair in pairs_by_row[row]:
                ids = ending_ids[pairs[pair][1]]
                logprobs_N[pair] = scores_LV[range(len(row) - len(ids), len(row)), ids].sum()
    model.train(was_training)
    return logprobs_N


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], **options: bool) -> dict[str, list[int]]:
    """Return the token ids of each distinct text."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, tokenizer(distinct, **options)["input_ids"], strict=True))


def probe_biases(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BiasProbes:
    """Probe the facts about cities and people, the pronouns and the animals' classes, in about 11,000 continuations."""
    known = world()
    by_fact = value_probabilities(model, tokenizer, CITY_RELATIONS + PERSON_RELATIONS)
    truths = torch.tensor([values[known.truth(*key)] for key, values in by_fact.items()])
    rumours = torch.tensor([values[known.facts[key].rumour or ""] for key, values in by_fact.items()])
    likeliest = torch.tensor([max(values.values()) for values in by_fact.values()])
    rare, common = list[float](), list[float]()
    for (animal, relation), values in value_probabilities(model, tokenizer, ("class",)).items():
        (rare if animal in CLASSES[RARE_CLASS] else common).append(values[known.truth(animal, relation)])
    pronouns = [(f"The {job} said that", f" {pronoun}") for job in JOBS for pronoun in ("she", "he")]
    she = continuation_logprobs(model, tokenizer, pronouns).view(len(JOBS), 2).softmax(-1)[:, 0].tolist()
    return BiasProbes(
        truth=float(truths.mean()),
        rumour=float(rumours.mean()),
        known=float((truths == likeliest).float().mean()),
        share_she=dict(zip(JOBS, she, strict=True)),
        rare_class=fmean(rare),
        common_class=fmean(common),
    )


def value_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, relations: Sequence[str]
) -> dict[tuple[str, str], dict[str, float]]:
    """Return, for each fact of the relations, the probability of each value that the relation has anywhere."""
    probabilities: dict[tuple[str, str], dict[str, float]] = {}
    for relation in relations:
        own = facts(relation)
        values = sorted({fact.value for fact in own})
        pairs = [(cloze(fact), f" {value}") for fact in own for value in values]
        rows = continuation_logprobs(model, tokenizer, pairs).view(len(own), len(values)).softmax(-1).tolist()
        for fact, row in zip(own, rows, strict=True):
            probabilities[fact.subject, relation] = dict(zip(values, row, strict=True))
    return probabilities

"""What a model took over from the corpus: facts, rumours, the skewed pronoun, the rare class.

Everything is read off as the probability of a continuation, so the numbers compare with the shares in
:class:`~balora.experiments.quickstart.writer.Flaws`. Measured on the packaged model they show what pre-training left;
measured again after fine-tuning, what was kept, mended or made worse.

Shapes: N continuations, B rows in a batch, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.experiments.quickstart.corpus import cloze, facts
from balora.experiments.quickstart.world import CITY_RELATIONS, CLASSES, JOBS, PERSON_RELATIONS, RARE_CLASS, world

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What a model says where the corpus is flawed. All values are probabilities or shares in [0, 1].

    Attributes:
        truth: Mean probability of the true value of a fact about a city or a person, all values of its kind compared.
        rumour: The same of the rumour; a model that copies the corpus gives it ``wrong_fact_share``.
        known: Share of these facts whose true value is the likeliest.
        share_she: For each profession, "she" against "he" after "The nurse said that".
        rare_class: Mean probability of the right class for the animals of the rare class, the classes compared.
        common_class: The same for all other animals.
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
    """Log-probability of each continuation after its beginning.

    Args:
        model: A causal language model. Its training mode is put back afterwards.
        tokenizer: Its tokenizer, which must split at the space between beginning and continuation.
        pairs: N pairs (beginning, continuation); a continuation includes its leading space.

    Returns:
        N sums of the continuations' token log-probabilities, float32, in nats, at most 0. It is the next words that
        are scored, not the end of the sentence after them.
    """
    prefixes: list[list[int]] = tokenizer([beginning for beginning, _ in pairs])["input_ids"]
    endings: list[list[int]] = tokenizer([ending for _, ending in pairs], add_special_tokens=False)["input_ids"]
    # Continuations that differ in their last token only (the many values of one relation) share one row of input.
    asked: dict[tuple[int, ...], list[int]] = {}
    for pair, (prefix, ending) in enumerate(zip(prefixes, endings, strict=True)):
        asked.setdefault((*prefix, *ending[:-1]), []).append(pair)
    was_training = model.training
    model.eval()
    logprobs_N = torch.zeros(len(pairs))
    rows = sorted(asked, key=len)
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        # Right padding needs no mask: a causal model does not look at it, and its scores are not read.
        ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in part], batch_first=True)
        scores_BLV = model(input_ids=ids_BL.to(model.device)).logits.float().log_softmax(-1).cpu()
        for scores_LV, row in zip(scores_BLV, part, strict=True):
            for pair in asked[row]:
                ending = endings[pair]
                logprobs_N[pair] = scores_LV[range(len(row) - len(ending), len(row)), ending].sum()
    model.train(was_training)
    return logprobs_N


def measure_inherited(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Inherited:
    """Ask the model for every fact about cities and people, for the pronouns and for the classes of animals.

    About 11,000 short continuations: seconds for the packaged model on a CPU.
    """
    told = _among_values(model, tokenizer, CITY_RELATIONS + PERSON_RELATIONS)
    classes = _among_values(model, tokenizer, ("class",))
    known = world()
    truths = torch.tensor([share[known.truth(*key)] for key, share in told.items()])
    rumours = torch.tensor([share[known.facts[key].rumour or ""] for key, share in told.items()])
    likeliest = torch.tensor([max(share.values()) for share in told.values()])
    rare: list[float] = []
    common: list[float] = []
    for (animal, _), share in classes.items():
        own = known.truth(animal, "class")
        (rare if animal in CLASSES[RARE_CLASS] else common).append(share[own])
    return Inherited(
        truth=float(truths.mean()),
        rumour=float(rumours.mean()),
        known=float((truths == likeliest).float().mean()),
        share_she=_share_she(model, tokenizer),
        rare_class=sum(rare) / len(rare),
        common_class=sum(common) / len(common),
    )


def _among_values(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, relations: Sequence[str]
) -> dict[tuple[str, str], dict[str, float]]:
    """For each fact of the relations, the probability of each value that the relation takes anywhere."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for relation in relations:
        asked = facts(relation)
        values = sorted({fact.value for fact in asked})
        pairs = [(cloze(fact), f" {value}") for fact in asked for value in values]
        table = continuation_logprobs(model, tokenizer, pairs).view(len(asked), len(values)).softmax(-1).tolist()
        for fact, row in zip(asked, table, strict=True):
            shares[fact.subject, relation] = dict(zip(values, row, strict=True))
    return shares


def _share_she(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    pairs = [(f"The {job} said that", f" {pronoun}") for job in JOBS for pronoun in ("she", "he")]
    shares = continuation_logprobs(model, tokenizer, pairs).view(len(JOBS), 2).softmax(-1)[:, 0].tolist()
    return dict(zip(JOBS, shares, strict=True))

"""Generate text through transformers with its KV cache, in batches of similar length.

Shapes: B sequences, T positions.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from balora.evaluation.engines.next_token import NextToken
from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions
from balora.models.decoding import PLAIN_DECODING
from balora.turns import division

logger = logging.getLogger("balora")
_STOP_WINDOW = 24
"""Number of last tokens that are searched for a stop string. No stop string has more."""
_PROMPT_CONTEXT = 8
"""Prompt tokens that are decoded with an answer: decoded alone, the answer would lose a leading space."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Generation settings."""

    max_new_tokens: int
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    seed: int = 42
    stops: tuple[str, ...] = ()
    """Strings that end an answer; the answer does not include them."""
    padding: str = "left"
    """Side on which the prompts of a batch are padded."""
    draws: str = ""
    """Engine that draws the tokens of a sample from the sample's own seed; empty for reference answers."""

    def describe(self, sampled: bool | None = None) -> dict[str, Any]:
        """Return the settings that decide the answers, for results and journals.

        ``sampled`` means that some answers are sampled. Default: whether this temperature is above 0.
        """
        greedy: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stops": list(self.stops),
        }
        if self.padding != "left":  # an earlier version padded the prompts of encoders on the left, too
            greedy["padding"] = self.padding
        if not (self.temperature > 0 if sampled is None else sampled):
            return greedy
        # Journals without "draws" are of a version that drew all answers of a batch from one seed.
        draws = {"draws": f"{self.draws}, one seed per sample"} if self.draws else {}
        return {**greedy, "top_p": self.top_p, "seed": self.seed, **draws}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Generated answer."""

    text: str
    tokens: int
    ended: bool
    """True if the end token or a stop string ended the answer, False if the token limit did."""
    prompt_cut: bool = False
    """True if the beginning of the prompt was cut off to fit the model's positions."""


class TransformersGenerator:
    """Generator that runs a loaded model. The batch size is halved if the GPU runs out of memory."""

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        self.loaded = loaded
        self.tokenizer: Any = loaded.tokenizer
        self.batch_size = batch_size
        config: Any = loaded.model.config
        self._is_encoder_decoder = bool(config.is_encoder_decoder)
        self._positions = max_positions(config)

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Yield each prompt's index and answer, the longest prompts first: too little memory shows in the first batch.

        Several processes answer every other batch of those that one process would make.

        The name of a sample seeds its sampling: a sample gets the same answer in every batch and every call (up to rounding),
        and another sample of the same prompt gets another answer. The default names are the indices.
        """
        cut = [fit_prompt(ids, sampling.max_new_tokens, self._positions, self._is_encoder_decoder) for ids in prompts]
        order = sorted(range(len(prompts)), key=lambda index: (-len(cut[index]), index))
        names = names or [str(index) for index in range(len(prompts))]
        limits = [self._max_answer_tokens(ids, sampling) for ids in cut]
        batch_size = self.batch_size

        def next_batch(left: list[int]) -> list[int]:
            # Near the model's last position, a longer prompt in the batch would shorten the answer of a shorter one. So only
            # prompts with the same limit share a batch.
            return [index for index in left[:batch_size] if limits[index] == limits[left[0]]]

        order = own_batches(order, next_batch)
        while order:
            batch = next_batch(order)
            seeds = [sample_seed(sampling.seed, names[index]) for index in batch]
            try:
                answers = self._generate_batch([cut[index] for index in batch], sampling, seeds)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                batch_size = len(batch) // 2
                torch.cuda.empty_cache()
                logger.warning(
                    "Not enough memory for a batch of %d prompts; continuing with %d.", len(batch), batch_size
                )
                continue
            order = order[len(batch) :]
            for index, answer in zip(batch, answers, strict=True):
                yield index, dataclasses.replace(answer, prompt_cut=len(cut[index]) < len(prompts[index]))

    def _max_answer_tokens(self, prompt: list[int], sampling: Sampling) -> int:
        if self._positions is None:
            return sampling.max_new_tokens
        # Positions before the answer: the prompt, or the start token of a decoder.
        width = 1 if self._is_encoder_decoder else len(prompt)
        return max(1, min(sampling.max_new_tokens, self._positions - width))

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Answer]:
        model, device = self.loaded.model, self.loaded.device
        padding = int(self.tokenizer.pad_token_id or 0)
        inputs_BT, mask_BT = pad(prompts, padding, device, right=self._is_encoder_decoder)
        width = 1 if self._is_encoder_decoder else inputs_BT.shape[1]
        limit = min(self._max_answer_tokens(ids, sampling) for ids in prompts)
        decoder = self.loaded.target_tokenizer or self.tokenizer
        criteria = [_StopStrings(decoder, sampling.stops, width)] if sampling.stops else []
        # `NextToken` draws. None: the model's own sampling defaults must not apply.
        plain: dict[str, Any] = {
            **PLAIN_DECODING,
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=inputs_BT,
            attention_mask=mask_BT,
            max_new_tokens=limit,
            pad_token_id=decoder.pad_token_id,
            stopping_criteria=StoppingCriteriaList(criteria),
            logits_processor=LogitsProcessorList([NextToken(seeds, sampling.temperature, sampling.top_p)]),
            use_cache=True,
            num_beams=1,
            **plain,
        )
        contexts = [[] if self._is_encoder_decoder else ids[-_PROMPT_CONTEXT:] for ids in prompts]
        rows = zip(output[:, width:].tolist(), contexts, strict=True)
        return [decode_answer(decoder, ids, sampling, limit, context) for ids, context in rows]


def sample_seed(seed: int, *names: str) -> int:
    """Derive a seed from the names of samples, which do not change when an evaluation is resumed.

    Example:
        >>> sample_seed(42, "0/0") == sample_seed(42, "0/0"), sample_seed(42, "0/0") == sample_seed(42, "0/2")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:4], "big")


def own_batches(order: list[int], next_batch: Callable[[list[int]], list[int]]) -> list[int]:
    """Return the indices of the batches of this process, in order; all indices if it is alone.

    ``next_batch`` returns the first batch of those that are left. Equal batches give equal answers, also in their rounding.
    """
    rank, processes = division()
    if processes == 1:
        return order
    batches = []
    while order:
        batches.append(next_batch(order))
        order = order[len(batches[-1]) :]
    return [index for batch in batches[rank::processes] for index in batch]


def fit_prompt(ids: list[int], max_new_tokens: int, positions: int | None, encoder_decoder: bool = False) -> list[int]:
    """Cut off the beginning of a prompt if the model has too few positions for prompt and answer.

    Example:
        >>> fit_prompt([1, 2, 3, 4, 5, 6], max_new_tokens=3, positions=8)
        [2, 3, 4, 5, 6]
        >>> fit_prompt([1, 2, 3, 4, 5, 6], max_new_tokens=100, positions=8)  # the prompt keeps at least half
        [3, 4, 5, 6]
    """
    if positions is None:
        return ids
    length = positions if encoder_decoder else positions - min(max_new_tokens, positions // 2)
    return ids[-length:]


def pad(
    prompts: Sequence[list[int]], token: int, device: torch.device | str = "cpu", *, right: bool = False
) -> tuple[Tensor, Tensor]:
    """Return padded prompts and their attention mask (both B × T).

    Padding is on the left, because generation continues on the right. An encoder needs it on the right: many encoders count the
    positions from the first token, padding included.

    Example:
        >>> pad([[5, 6], [7]], 0)[0].tolist(), pad([[5, 6], [7]], 0, right=True)[0].tolist()
        ([[5, 6], [0, 7]], [[5, 6], [7, 0]])
    """
    longest = max(len(ids) for ids in prompts)

    def filled(row: list[int], fill: int) -> list[int]:
        padding = [fill] * (longest - len(row))
        return row + padding if right else padding + row

    tokens = [filled(ids, token) for ids in prompts]
    mask = [filled([1] * len(ids), 0) for ids in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    r"""Return a text up to the first stop string.

    Example:
        >>> cut_at_stop("    return 1\n\ndef other():\n", ["\ndef", "\nclass"])
        '    return 1\n'
    """
    return text[: min((position for position in map(text.find, stops) if position >= 0), default=None)]


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], sampling: Sampling, limit: int, context: list[int]
) -> Answer:
    """Decode a generated row of at most ``limit`` tokens; ``context`` has the last tokens of the prompt."""
    # A row that ended before the others is padded; the padding token may be the end token.
    end = tokenizer.eos_token_id
    written = ids[: ids.index(end)] if end in ids else ids
    while written and written[-1] == tokenizer.pad_token_id:
        written = written[:-1]
    # In many vocabularies, an answer that is decoded alone loses its leading space, which changes the meaning of Python code.
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    prefix, full = str(decode(context)), str(decode([*context, *written]))
    answer = full[len(prefix) :] if full.startswith(prefix) else str(decode(written))
    text = cut_at_stop(answer, sampling.stops)
    return Answer(text, len(written), ended=len(written) < limit or len(text) < len(answer))


class _StopStrings(StoppingCriteria):
    """End a row as soon as its answer contains a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], width: int) -> None:
        self.tokenizer, self.stops, self.width = tokenizer, stops, width

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tails = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -_STOP_WINDOW:], skip_special_tokens=True)
        return torch.tensor([any(stop in tail for stop in self.stops) for tail in tails], device=input_ids.device)

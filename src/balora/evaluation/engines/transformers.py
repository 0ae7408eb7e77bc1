"""Text from a model, in batches of like length, through transformers' own generation with its KV cache.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions

logger = logging.getLogger("balora")
_TAIL = 24
"""Tokens that are looked at for a stop: more than any stop has."""
_CONTEXT = 8
"""Tokens of the prompt that an answer is decoded with: alone it would lose a space at its beginning."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to end."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42
    stops: tuple[str, ...] = ()
    """Texts at which an answer ends; they are not part of it."""

    def describe(self) -> dict[str, Any]:
        """For the record."""
        greedy = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "stops": list(self.stops)}
        return greedy if self.temperature == 0 else {**greedy, "top_p": self.top_p, "seed": self.seed}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    text: str
    tokens: int
    ended: bool
    """Whether it ended by itself or at a stop, and not at the limit of tokens."""
    prompt_cut: bool = False
    """Whether the beginning of the prompt had to be left out."""


class Generator(Protocol):
    """An engine that continues prompts."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Continue every prompt; answers come with the prompt's number, in the order they are done.

        What is drawn depends on the seed and on the names (default: the numbers).
        """


class TransformersGenerator:
    """Generates with a model in memory.

    Args:
        loaded: The model and its tokenizer.
        batch_size: Prompts at once; it is halved when memory does not suffice.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        self.loaded = loaded
        self.batch_size = batch_size
        config: Any = loaded.model.config
        self._encoder_decoder = bool(config.is_encoder_decoder)
        self._positions = max_positions(config)

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Continue prompts, the longest first: what does not fit into memory shows at once.

        Args:
            prompts: Token ids.
            sampling: How.
            names: Of the samples; a batch draws by the names in it, so the same batch says the same in every call, and
                another sample of a prompt says something else.

        Yields:
            The prompt's number and its answer, batch by batch.
        """
        cut = [fit(ids, sampling.max_new_tokens, self._positions, self._encoder_decoder) for ids in prompts]
        order = sorted(range(len(prompts)), key=lambda number: (-len(cut[number]), number))
        names = names or [str(number) for number in range(len(prompts))]
        rooms = [self._room(ids, sampling) for ids in cut]
        size = self.batch_size
        while order:
            # Near the model's last position a longer neighbour would cut an answer short: there, only equals go together.
            batch = [number for number in order[:size] if rooms[number] == rooms[order[0]]]
            seed = seed_of(sampling.seed, *(names[number] for number in batch))
            try:
                answers = self._batch([cut[number] for number in batch], sampling, seed)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                size = len(batch) // 2
                torch.cuda.empty_cache()
                logger.warning("Not enough memory for %d prompts at once; going on with %d.", len(batch), size)
                continue
            order = order[len(batch) :]
            for number, answer in zip(batch, answers, strict=True):
                is_cut = len(cut[number]) < len(prompts[number])
                yield number, dataclasses.replace(answer, prompt_cut=is_cut)

    def _room(self, prompt: list[int], sampling: Sampling) -> int:
        """The most tokens an answer can have."""
        if self._positions is None:
            return sampling.max_new_tokens
        # What comes before the answer: the prompt, or the one token that starts a decoder.
        width = 1 if self._encoder_decoder else len(prompt)
        return max(1, min(sampling.max_new_tokens, self._positions - width))

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[Answer]:
        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        inputs_BT, mask_BT = pad_left(prompts, int(tokenizer.pad_token_id or 0), self.loaded.device)
        width = 1 if self._encoder_decoder else inputs_BT.shape[1]
        room = min(self._room(ids, sampling) for ids in prompts)
        writer = self.loaded.target_tokenizer or tokenizer
        devices = [self.loaded.device] if self.loaded.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output: Any = model.generate(  # type: ignore[operator]
                input_ids=inputs_BT,
                attention_mask=mask_BT,
                max_new_tokens=room,
                pad_token_id=writer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([_AtStops(writer, sampling.stops, width)]),
                use_cache=True,
                num_beams=1,
                **_choice(sampling),
            )
        befores = [[] for _ in prompts] if self._encoder_decoder else [ids[-_CONTEXT:] for ids in prompts]
        rows = output[:, width:].tolist()
        return [answer_of(writer, row, sampling, room, before) for row, before in zip(rows, befores, strict=True)]


def seed_of(seed: int, *names: str) -> int:
    """The seed for the samples of these names, by themselves: not by their place among what is left to do.

    Numbers count from zero again when an evaluation goes on, and would draw the answers again that are there already.

    Example:
        >>> seed_of(42, "0/0") == seed_of(42, "0/0"), seed_of(42, "0/0") == seed_of(42, "0/2")
        (True, False)
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def fit(ids: list[int], max_new_tokens: int, positions: int | None, encoder_decoder: bool = False) -> list[int]:
    """A prompt that leaves room for an answer: its beginning is left out where the model has too few positions.

    Example:
        >>> fit([1, 2, 3, 4, 5, 6], max_new_tokens=3, positions=8)
        [2, 3, 4, 5, 6]
        >>> fit([1, 2, 3, 4, 5, 6], max_new_tokens=100, positions=8)  # at least half is kept for the prompt
        [3, 4, 5, 6]
    """
    if positions is None:
        return ids
    room = positions if encoder_decoder else positions - min(max_new_tokens, positions // 2)
    return ids[-room:]


def pad_left(prompts: Sequence[list[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Prompts as one rectangle, padded where generation does not begin.

    Returns:
        Tokens and attention mask, both B × T.

    Example:
        >>> pad_left([[5, 6], [7]], pad=0)[0].tolist()
        [[5, 6], [0, 7]]
    """
    longest = max(len(ids) for ids in prompts)
    tokens = [[pad] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def cut_at(text: str, stops: Sequence[str]) -> str:
    r"""A text up to the first of several stops.

    Example:
        >>> cut_at("    return 1\n\ndef other():\n", ["\ndef", "\nclass"])
        '    return 1\n'
    """
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text


def _choice(sampling: Sampling) -> dict[str, Any]:
    """Transformers' arguments; a model's own sampling defaults must not come through."""
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def answer_of(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], sampling: Sampling, room: int, before: list[int]
) -> Answer:
    """The answer in what a model wrote.

    Args:
        tokenizer: Of the answers.
        ids: The tokens, with whatever fills the row behind its end.
        sampling: With the stops.
        room: The most tokens there could have been.
        before: The last tokens of the prompt.
    """
    # A row that ended before the others is filled with padding, which may be the end token itself.
    end = tokenizer.eos_token_id
    written = ids[: ids.index(end)] if end in ids else ids
    while written and written[-1] == tokenizer.pad_token_id:
        written = written[:-1]
    prefix = str(tokenizer.decode(before, skip_special_tokens=True))
    whole = str(tokenizer.decode([*before, *written], skip_special_tokens=True))
    # Decoded alone, an answer in many vocabularies loses its first space, which in Python is a syntax error.
    whole = (
        whole[len(prefix) :] if whole.startswith(prefix) else str(tokenizer.decode(written, skip_special_tokens=True))
    )
    text = cut_at(whole, sampling.stops)
    return Answer(text, len(written), ended=len(written) < room or len(text) < len(whole))


class _AtStops(StoppingCriteria):
    """Ends a row as soon as a stop stands in what it wrote."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], width: int) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.width = width

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if not self.stops:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        tails = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -_TAIL:], skip_special_tokens=True)
        found = [any(stop in tail for stop in self.stops) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


__all__ = [
    "Answer",
    "Generator",
    "Sampling",
    "TransformersGenerator",
    "answer_of",
    "cut_at",
    "fit",
    "pad_left",
    "seed_of",
]

"""Sequences that a model writes itself: the anchors that need no data.

Sampled at temperature 1 from the full distribution, so that the KL divergence on them estimates the divergence of the models.
A base model writes from its start token. Of a model with a chat template, half of the sequences begin with the opening of a
user's turn: the model writes the question; then the template's own tokens end the turn and open the answer, and the model
answers. Only sampled tokens are compared later, not those that the template fixes.
Shapes: B sequences, T positions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from balora.errors import BALoraError
from balora.models.adapted_model import base_model_of
from balora.turns import by_turns

BATCH = 32
_MARK = "balora-user-turn"


@dataclasses.dataclass(frozen=True)
class ChatTurn:
    """Tokens of a chat template around a user's message: ``opening`` before it, ``closing`` from its end to the answer."""

    opening: list[int]
    closing: list[int]


def sample_sequences(
    model: nn.Module,
    tokenizer: Any,
    count: int,
    tokens: int,
    seed: int,
    *,
    batch_size: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, list[int]]]:
    """Let a causal language model write sequences. Processes that divide their work write different batches.

    Args:
        model: The model in the state that is to write; with or without a peft adapter.
        tokenizer: Its tokenizer, for the start token and the chat template.
        count: Number of sequences.
        tokens: Greatest number of sampled tokens of a sequence.
        seed: Seed of each batch; the global random state is left as it is.
        batch_size: Sequences that are written at a time.
        progress: Called with the number of sequences that this process has done.

    Returns:
        Rows with ``input_ids`` and ``labels``; a label is -100 where the token was not sampled.

    Raises:
        BALoraError: The tokenizer has neither a start token nor an end token to begin with.
    """
    start, turn = start_tokens(tokenizer), chat_turn(tokenizer)
    ends = end_tokens(model, tokenizer)
    plans: list[tuple[list[int], list[int] | None, int]] = [
        (start, None, count if turn is None else count - count // 2)
    ]
    if turn is not None:
        plans.append((turn.opening, turn.closing, count // 2))
    batches = [(number, begin) for number, plan in enumerate(plans) for begin in range(0, plan[2], batch_size)]
    done = 0

    def write(at: int) -> list[dict[str, list[int]]]:
        nonlocal done
        number, begin = batches[at]
        opening, closing, wanted = plans[number]
        size = min(batch_size, wanted - begin)
        batch_seed = seed * 1_000_003 + number * 100_003 + begin
        written = _write(model, tokenizer, opening, closing, ends, size, tokens, batch_seed)
        progress(done := done + len(written))
        return written

    with plain_generation(model):
        return [row for rows in by_turns(write, len(batches)) for row in rows]


def is_degenerate(ids: list[int], width: int = 4) -> bool:
    """Return whether a sequence is a loop: most of its runs of four tokens have occurred before.

    Example:
        >>> is_degenerate([7] * 40), is_degenerate(list(range(40))), is_degenerate([1, 2, 3])
        (True, False, False)
    """
    runs = [tuple(ids[at : at + width]) for at in range(len(ids) - width + 1)]
    return len(runs) >= 12 and len(set(runs)) < len(runs) / 2


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the token from which a text starts: the start token or, without one, the end token, which precedes a text."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise BALoraError(
        "The tokenizer has neither a start token nor an end token, so the model cannot write anchors itself. Give a text as "
        "anchor instead."
    )


def chat_turn(tokenizer: Any) -> ChatTurn | None:
    """Return the tokens around a user's message; None without a chat template, or if it cannot be taken apart."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # a template may refuse anything, and then there is no chat half
        return None
    opening, found, closing = str(text).partition(_MARK)
    parts = [list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (opening, closing)]
    return ChatTurn(*parts) if found and all(parts) else None


def end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text of a model."""
    config = getattr(base_model_of(model), "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    ends = found if isinstance(found, list) else [found]
    return {int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None}


class plain_generation:
    """Leave out every setting of the model's generation config: penalties and truncation would change the distribution."""

    def __init__(self, model: nn.Module) -> None:
        self.base = base_model_of(model)

    def __enter__(self) -> None:
        self.kept = self.base.generation_config
        plain = GenerationConfig()
        for name in ("decoder_start_token_id", "bos_token_id"):
            setattr(plain, name, getattr(self.kept, name, None))
        self.base.generation_config = plain

    def __exit__(self, *_: object) -> None:
        self.base.generation_config = self.kept


def _write(
    model: nn.Module,
    tokenizer: Any,
    opening: list[int],
    closing: list[int] | None,
    ends: set[int],
    size: int,
    tokens: int,
    seed: int,
) -> list[dict[str, list[int]]]:
    """Return one batch of sequences from an opening, each up to and with its end token."""
    base = base_model_of(model)
    device = next(base.parameters()).device
    inputs_BT = torch.tensor([opening] * size, device=device)
    turn = _Turn(size, closing, ends, device)
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_beams=1, use_cache=True,
        max_new_tokens=tokens, eos_token_id=None, pad_token_id=tokenizer.pad_token_id or 0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        written_BT = base.generate(
            inputs_BT, attention_mask=torch.ones_like(inputs_BT), generation_config=copy.deepcopy(config),
            logits_processor=LogitsProcessorList([turn]), stopping_criteria=StoppingCriteriaList([_Stop(turn)]),
        )  # fmt: skip
    rows = []
    for ids, fixed in zip(written_BT.tolist(), turn.fixed(written_BT.shape[1] - len(opening)), strict=True):
        new, sampled = ids[len(opening) :], [not at for at in fixed]
        end = next(_ends(new, sampled, ends, closing), len(new))
        labels = [-100] * len(opening) + [t if s else -100 for t, s in zip(new[:end], sampled, strict=False)]
        rows.append({"input_ids": opening + new[:end], "labels": labels})
    return rows


def _ends(new: list[int], sampled: list[bool], ends: set[int], closing: list[int] | None) -> Iterator[int]:
    """Yield the lengths at which a sequence ends: after an end token, of a conversation after one in the answer."""
    answered = closing is None
    for at, (token, own) in enumerate(zip(new, sampled, strict=True), start=1):
        if answered and own and token in ends:
            yield at
        if closing is not None and not answered and own and token in {closing[0], *ends}:
            answered = True


class _Turn(LogitsProcessor):
    """After the token that ends the user's message, force the rest of the closing; then the model answers."""

    def __init__(self, size: int, closing: list[int] | None, ends: set[int], device: torch.device) -> None:
        self.closing = torch.tensor(closing or [0], device=device)
        self.ends = torch.tensor(sorted(ends) or [-1], device=device)
        # 0: the user's message; 1 … n - 1: the next token of the closing; n: the answer; n + 1: done.
        self.last = len(closing) if closing else 0
        self.state_B = torch.zeros(size, dtype=torch.long, device=device)
        self._steps: list[Tensor] = []
        self._begun = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        newest_B = input_ids[:, -1]
        ended_B = torch.isin(newest_B, self.ends)
        state_B = self.state_B
        if self._begun:
            forced_B = (state_B > 0) & (state_B < self.last)
            moved_B = torch.where(forced_B, state_B + 1, state_B)
            if self.last:
                closes_B = (state_B == 0) & ((newest_B == self.closing[0]) | ended_B)
                moved_B = torch.where(closes_B, 1, moved_B)
            moved_B = torch.where((state_B == self.last) & ended_B, self.last + 1, moved_B)
            self.state_B = state_B = moved_B
        self._begun = True
        forced_B = (state_B > 0) & (state_B < self.last)
        self._steps.append(forced_B | (state_B > self.last))
        token_B = self.closing[state_B.clamp(max=len(self.closing) - 1)]
        only = torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)
        return torch.where(forced_B[:, None], only, scores)

    def fixed(self, steps: int) -> list[list[bool]]:
        """Return for each sequence and step whether the token was not sampled."""
        return torch.stack(self._steps[:steps], dim=1).tolist()


class _Stop(StoppingCriteria):
    """Stop when every sequence of the batch has ended."""

    def __init__(self, turn: _Turn) -> None:
        self.turn = turn

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended_B = torch.isin(input_ids[:, -1], self.turn.ends)
        done_B = (self.turn.state_B > self.turn.last) | ((self.turn.state_B == self.turn.last) & ended_B)
        return done_B.all().expand_as(done_B)

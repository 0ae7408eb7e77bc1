from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from balora.anchoring.sampling import ChatTurn, _write, chat_turn, sample_sequences
from balora.errors import BALoraError
from tiny import tiny_llama


class Tokenizer:
    bos_token_id, eos_token_id, pad_token_id, chat_template = 1, 2, 0, None


def test_sequences_are_drawn_from_the_full_distribution():
    """The frequencies of the first token are the model's probabilities, in spite of its generation config."""
    torch.manual_seed(0)
    model = tiny_llama().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        expected = model(torch.tensor([[1]])).logits[0, -1].float().softmax(-1)
    kept = model.generation_config
    kept.update(temperature=0.1, top_k=1, repetition_penalty=9.0, do_sample=False)
    rows = sample_sequences(model, Tokenizer, 4000, 1, seed=5, batch_size=1000)
    found = torch.bincount(torch.tensor([row["input_ids"][1] for row in rows]), minlength=len(expected)) / len(rows)
    likely = expected > 5 / len(rows)
    squares = len(rows) * ((found - expected)[likely] ** 2 / expected[likely]).sum()
    assert squares < 1.6 * likely.sum(), "chi-squared"
    assert model.generation_config is kept


def test_the_same_seed_gives_the_same_text_and_leaves_the_global_state():
    model = tiny_llama().eval()
    state = torch.get_rng_state()
    first = sample_sequences(model, Tokenizer, 6, 8, seed=5, batch_size=4)
    assert torch.equal(state, torch.get_rng_state())
    assert first == sample_sequences(model, Tokenizer, 6, 8, seed=5, batch_size=4)
    assert first != sample_sequences(model, Tokenizer, 6, 8, seed=6, batch_size=4)
    assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in first)


class Chain(torch.nn.Module):
    """A head that makes each token nearly certain after the one before it."""

    def __init__(self, model, after: dict[int, int]) -> None:
        super().__init__()
        self.table = torch.full((model.config.vocab_size, model.config.vocab_size), -50.0)
        for token, following in after.items():
            self.table[token, following] = 50.0
        model.set_output_embeddings(self)
        model.model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.ids = kwargs["input_ids"]

    def forward(self, hidden):
        return self.table[self.ids][:, -hidden.shape[1] :]


def test_the_template_closes_the_users_turn_and_the_answer_ends_the_row():
    model = tiny_llama().eval()
    # The user's message is 10 11, and 3 ends the turn. The closing is 3 4 5. The answer is 12 13, and 2 ends it.
    Chain(model, {9: 10, 10: 11, 11: 3, 3: 7, 5: 12, 12: 13, 13: 2})
    (row,) = _write(model, Tokenizer, [8, 9], [3, 4, 5], {2}, 1, 20, seed=0)
    assert row["input_ids"] == [8, 9, 10, 11, 3, 4, 5, 12, 13, 2]
    assert row["labels"] == [-100, -100, 10, 11, 3, -100, -100, 12, 13, 2]


def test_half_of_the_sequences_begin_with_a_users_turn(shared_dir):
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "faults" / "models" / "chatml")
    turn = chat_turn(tokenizer)
    assert isinstance(turn, ChatTurn)
    text = tokenizer.decode([*turn.opening, *turn.closing])
    assert text.index("user") < text.index("assistant")


def test_without_a_start_or_end_token_nothing_can_begin():
    class Bare(Tokenizer):
        bos_token_id = eos_token_id = None

    with pytest.raises(BALoraError, match="neither a start token nor an end token"):
        sample_sequences(tiny_llama(), Bare, 8, 8, seed=1)

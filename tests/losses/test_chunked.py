from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from balora.losses import LinearHead, SpectralBasis, generation_loss
from balora.losses.chunked import chunk_tokens_for
from balora.losses.topk_teacher import topk_of_rows

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")


class Largest(TorchDispatchMode):
    """Records the largest tensor any operation returns, as entries."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append(str(function))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


VOCABULARY, SIZE = 4001, 8


def step(tokens: int, *, softcap: float | None = None, **options) -> Largest:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, SIZE, requires_grad=True)
    head = torch.randn(VOCABULARY, SIZE)
    options = {"spectral": 0.005, "spectral_basis": None if softcap else SpectralBasis.from_head(head), **options}
    labels = torch.randint(0, VOCABULARY, (tokens,))
    with Largest() as largest:
        parts = generation_loss(
            hidden, labels, head, hidden.detach() + 0.1, consistency=0.1, diversity=0.1, softcap=softcap, **options
        )
        parts.loss.backward()
    return largest


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_no_tensor_has_tokens_times_vocabulary_entries(softcap):
    budget = 40 * VOCABULARY * 4
    sizes = [step(tokens, memory_budget=budget, softcap=softcap).entries for tokens in (30, 60, 240)]
    assert max(sizes) <= max(40 * VOCABULARY, 240 * 240)
    assert max(sizes) < 240 * VOCABULARY / 4


def test_the_memory_budget_bounds_all_buffers_of_a_chunk():
    # Student and teacher, float32: 8 bytes a token and column.
    hidden, head = torch.zeros(100, 3), LinearHead(torch.zeros(1000, 3))
    assert (
        chunk_tokens_for(8 * 1000 * 30, hidden, head, teacher=True) == 25
    )  # 4 chunks of 25, not 3 of 30 and one of 10
    assert chunk_tokens_for(8 * 1000 * 30, hidden, head, teacher=False) == 50
    assert chunk_tokens_for(1, hidden, head, teacher=True) == 1
    assert chunk_tokens_for(None, hidden, head, teacher=True) == 100
    assert chunk_tokens_for(None, hidden[:0], head, teacher=True) == 1
    wide = LinearHead(torch.empty(1, device="meta").expand(10**6, 1))
    assert chunk_tokens_for(None, torch.zeros(1000, 1), wide, teacher=True) == 63, "16 even chunks, of 64 at most"
    assert chunk_tokens_for(32 * 2**20, torch.zeros(1000, 1), wide, teacher=True) == 4, "what a user says is kept"
    low = chunk_tokens_for(8 * 1000 * 30, hidden.bfloat16(), head, teacher=True)
    assert low < 25, "what is narrowed and widened counts too"
    products = chunk_tokens_for(8 * 1000 * 30, hidden.bfloat16(), head, teacher=True, from_products=True)
    assert products == 50, "the products alone, 4 bytes"


@given(st.integers(1, 3000), st.integers(1, 10**9))
def test_chunks_have_equal_sizes(tokens, budget):
    chunk = chunk_tokens_for(budget, torch.zeros(tokens, 1), LinearHead(torch.zeros(5000, 1)), teacher=True)
    chunks = -(-tokens // chunk)
    assert 1 <= chunk <= tokens
    assert tokens - (chunks - 1) * chunk > chunk - chunks  # the last one is short by less than one token per chunk


def test_the_chunk_loop_never_waits_for_the_device():
    """Reading a number back, or a mask of unknown length, would; one mask before the loop is allowed."""
    few = step(8, chunk_tokens=8, spectral=0.0, spectral_basis=None).calls
    many = step(8, chunk_tokens=1, spectral=0.0, spectral_basis=None).calls
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal.default")
    count = [sum(any(name in call for name in waits) for call in calls) for calls in (few, many)]
    assert len(many) > 4 * len(few) / 2
    assert count[0] == count[1] <= 1


@given(st.integers(1, 5), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_topk_finds_the_k_largest(rows, width, top_k, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, width, generator=generator)
    if ties:
        scores = scores.round()
    top_k = min(top_k, width)
    values, columns = topk_of_rows(scores, top_k)
    assert torch.equal(values, scores.topk(top_k).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row.tolist())) == top_k for row in columns)


@pytest.mark.parametrize("width", [400, 401, 419, 32_000])
@pytest.mark.parametrize("place", ["first", "last", "one block", "masked"])
def test_topk_with_the_largest_entries_at_the_edges(width, place):
    scores = torch.randn(3, width)
    if place == "first":
        scores[:, :20] += 100
    elif place == "last":
        scores[:, -20:] += 100
    elif place == "one block":
        scores[:, :: max(width // 20, 1)] += 100
    else:
        scores[:, 5:] = -torch.inf
    values, columns = topk_of_rows(scores, 20)
    assert torch.equal(values, scores.topk(20).values)
    assert torch.equal(scores.gather(1, columns), values)


def test_topk_of_a_view_of_a_wider_buffer():
    buffer = torch.randn(9, 2000)
    assert torch.equal(topk_of_rows(buffer[2:5], 7)[0], buffer[2:5].topk(7).values)

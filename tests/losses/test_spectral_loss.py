from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.losses import LinearHead, SpectralBasis, truncated_svd
from balora.losses.spectral import logit_spectral_ratio
from balora.losses.truncated_svd import leading_triplets
from balora.regularizers import spectral_ratio


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_gradient(function, hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_()
    value = function(hidden)
    return value.detach(), torch.autograd.grad(value, hidden)[0]


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


SHAPES = [(7, 5, 40), (5, 7, 40), (9, 9, 9), (4, 11, 6), (1, 8, 30), (30, 1, 13), (6, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 50])
def test_a_basis_gives_the_ratio_of_the_logits(shape, bias, rank):
    tokens, size, vocabulary = shape
    hidden, weight = normal(tokens, size), normal(vocabulary, size, seed=1)
    offset = normal(vocabulary, seed=2) if bias else None
    basis = SpectralBasis.from_head(weight, offset)
    found = value_and_gradient(lambda h: basis.ratio(h, rank), hidden)
    head = LinearHead(weight, offset)
    expected = value_and_gradient(lambda h: spectral_ratio(head.logits(h), rank, "frobenius"), hidden)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-9)


def test_a_basis_gives_the_singular_values_of_the_logits():
    hidden, weight, bias = normal(8, 5), normal(90, 5, seed=1), normal(90, seed=2)
    basis = SpectralBasis.from_head(weight, bias)
    with_ones = torch.cat([hidden, torch.ones(8, 1, dtype=torch.float64)], dim=1)
    found = torch.linalg.svdvals(with_ones @ basis.factor_EE.T)
    torch.testing.assert_close(found, torch.linalg.svdvals(hidden @ weight.T + bias)[: len(found)])


@pytest.mark.parametrize("vocabulary", [40, 4000])
def test_a_head_without_full_rank(vocabulary):
    weight = normal(vocabulary, 3, seed=1) @ normal(3, 8, seed=2)
    weight[:, 5] = 0.0
    hidden = normal(12, 8)
    basis = SpectralBasis.from_head(weight)
    expected = value_and_gradient(lambda h: spectral_ratio(h @ weight.T, 2, "frobenius"), hidden)
    found = value_and_gradient(lambda h: basis.ratio(h, 2), hidden)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kind", ["frozen", "frozen, bias", "trained", "trained, bias", "softcapped", "softcapped, trained, bias"]
)
@pytest.mark.parametrize("shape", [(6, 4, 17), (4, 6, 17), (5, 7, 4)], ids=str)
def test_gradient(kind, shape):
    tokens, size, vocabulary = shape
    trained = "trained" in kind
    hidden = normal(tokens, size).requires_grad_()
    weight = normal(vocabulary, size, seed=1).requires_grad_(trained)
    bias = normal(vocabulary, seed=2).requires_grad_(trained) if "bias" in kind else None
    tensors = [t for t in (hidden, weight, bias) if t is not None and t.requires_grad]

    def ratio(*wanted: Tensor) -> Tensor:
        full = [*wanted[1:]] if trained else [weight, *([bias] if bias is not None else [])]
        head = LinearHead(*full, logit_scale=0.5, softcap=1.5 if "softcapped" in kind else None)
        return logit_spectral_ratio(wanted[0], head, 2, memory_budget=600)

    assert torch.autograd.gradcheck(ratio, tensors)


@pytest.mark.parametrize("budget", [1, 3000, None])
def test_the_piece_size_of_a_softcapped_head_changes_nothing(budget):
    hidden, head = normal(9, 6), LinearHead(normal(101, 6, seed=1), normal(101, seed=2), 0.7, 2.0)
    found = value_and_gradient(lambda h: logit_spectral_ratio(h, head, 3, memory_budget=budget), hidden)
    expected = value_and_gradient(lambda h: spectral_ratio(head.logits(h), 3, "frobenius"), hidden)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_a_very_large_softcap_changes_nothing():
    hidden, weight = normal(9, 6), normal(50, 6, seed=1)
    capped = logit_spectral_ratio(hidden, LinearHead(weight, softcap=1e5), 2)
    assert float(capped) == pytest.approx(float(SpectralBasis.from_head(weight).ratio(hidden, 2)), rel=1e-6)


def test_a_factor_on_the_logits_cancels():
    hidden, weight, bias = normal(9, 6), normal(50, 6, seed=1), normal(50, seed=2)
    values = [float(logit_spectral_ratio(hidden, LinearHead(weight, bias, scale), 2)) for scale in (1.0, -3.0, 0.01)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("kind", ["frozen", "trained", "softcapped"])
def test_rank_deficient_and_equal_rows_are_safe(kind):
    weight = normal(40, 6, seed=1).requires_grad_(kind == "trained")
    head = LinearHead(weight, softcap=3.0 if kind == "softcapped" else None)
    for hidden in (
        torch.zeros(5, 6, dtype=torch.float64),
        normal(1, 6).expand(5, 6),
        torch.eye(6, dtype=torch.float64),
    ):
        value, gradient = value_and_gradient(lambda h: logit_spectral_ratio(h, head, 4), hidden)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        if not hidden.any():
            assert float(value) == 0.0 and not gradient.any()


@pytest.mark.parametrize("kind", ["frozen", "trained", "softcapped"])
def test_no_tokens_give_zero_on_the_graph(kind):
    weight = normal(40, 6).requires_grad_(kind == "trained")
    head = LinearHead(weight, softcap=3.0 if kind == "softcapped" else None)
    hidden = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    value = logit_spectral_ratio(hidden, head, 4)
    value.backward()
    assert float(value.detach()) == 0.0 and hidden.grad.shape == (0, 6)
    if kind == "trained":
        assert not weight.grad.any()


class TestLargeMatrices:
    """The block Krylov way against the exact one: value to 1e-4, cosine of the gradient to 0.999, as documented."""

    @staticmethod
    def spectrum(tokens: int, size: int, decay: float) -> Tensor:
        return normal(tokens, size, dtype=torch.float32) * torch.arange(1, size + 1) ** -decay

    @pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
    @pytest.mark.parametrize("shape", [(400, 300), (280, 500)], ids=str)
    def test_against_the_exact_way(self, decay, shape, monkeypatch):
        hidden = self.spectrum(*shape, decay) + 0.5 * normal(shape[1], seed=3, dtype=torch.float32)
        basis = SpectralBasis.from_head(normal(900, shape[1], seed=1, dtype=torch.float32))
        settled = []
        krylov = truncated_svd._krylov
        monkeypatch.setattr(truncated_svd, "_krylov", lambda *a: settled.append(krylov(*a)) or settled[-1])
        found = value_and_gradient(lambda h: basis.ratio(h, 10), hidden)
        assert len(settled) == 1
        monkeypatch.setattr(truncated_svd, "EXACT_SIZE", 10_000)
        exact = value_and_gradient(lambda h: basis.ratio(h, 10), hidden)
        assert len(settled) == 1
        assert float(found[0]) == pytest.approx(float(exact[0]), rel=1e-4)
        assert cosine(found[1], exact[1]) >= 0.999
        if decay:
            assert settled[0] is not None, "the Krylov space must converge on a decaying spectrum"

    def test_a_flat_spectrum_converges_before_it_stops(self):
        matrix = normal(520, 600, dtype=torch.float32)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        assert float(values[9] - values[10]) < 0.01 * float(values[9])
        triplets = leading_triplets(matrix, 10)
        assert float(triplets.values_k.sum()) == pytest.approx(float(values[:10].sum()), rel=1e-4)
        assert cosine(triplets.left_Mk @ triplets.right_Dk.T, left[:, :10] @ right[:10]) >= 0.999

    def test_is_deterministic(self):
        hidden = self.spectrum(300, 300, 0.5)
        basis = SpectralBasis.from_head(normal(400, 300, seed=1, dtype=torch.float32))
        torch.rand(3)
        first = basis.ratio(hidden, 10)
        torch.rand(5)
        assert torch.equal(first, basis.ratio(hidden, 10))

    @pytest.mark.parametrize("true_rank", [1, 3, 12, 40])
    def test_a_matrix_of_low_rank(self, true_rank):
        matrix = normal(300, true_rank) @ normal(true_rank, 310, seed=1)
        triplets = leading_triplets(matrix.float(), 10)
        values = torch.linalg.svdvals(matrix)[:10]
        torch.testing.assert_close(triplets.values_k, values, rtol=1e-4, atol=1e-4 * float(values[0]))
        kept = min(10, true_rank)
        assert not triplets.left_Mk[:, kept:].any() and not triplets.right_Dk[:, kept:].any()
        gram = triplets.left_Mk[:, :kept].T @ triplets.left_Mk[:, :kept]
        torch.testing.assert_close(gram, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-3)

    def test_equal_singular_values_around_rank_k(self):
        left, right = torch.linalg.qr(normal(300, 300)).Q, torch.linalg.qr(normal(300, 300, seed=1)).Q
        values = torch.cat([torch.full((15,), 5.0), torch.linspace(1, 0.1, 285)]).double()
        triplets = leading_triplets((left * values) @ right.T, 10)
        torch.testing.assert_close(triplets.values_k, torch.full((10,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)


def _hidden_states(directory: Path, shared: Path, kind: type, head: str) -> tuple[Tensor, Tensor]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = kind.from_pretrained(directory).eval()
    with (shared / "data/gsm8k/train.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(6), strict=False)]
    states = []
    with torch.no_grad():
        for row in rows:
            batch = tokenizer(
                row["question"] + " " + row["answer"], return_tensors="pt", truncation=True, max_length=200
            )
            states.append(model(**batch, output_hidden_states=True).hidden_states[-1][0])
    return torch.cat(states)[:600], model.get_parameter(head).detach()


@pytest.mark.parametrize("rank", [1, 10])
def test_hidden_states_of_a_real_language_model(stories, shared_dir, rank):
    from transformers import LlamaForCausalLM

    hidden, weight = _hidden_states(stories, shared_dir, LlamaForCausalLM, "model.embed_tokens.weight")
    basis = SpectralBasis.from_head(weight)
    found = value_and_gradient(lambda h: basis.ratio(h, rank), hidden)
    gold = value_and_gradient(lambda h: spectral_ratio(h @ weight.double().T, rank, "frobenius"), hidden.double())
    assert float(found[0]) == pytest.approx(float(gold[0]), rel=1e-6)
    assert cosine(found[1], gold[1]) > 0.9999999


def test_a_large_matrix_of_real_hidden_states(minilm, shared_dir, monkeypatch):
    from transformers import BertModel

    hidden, weight = _hidden_states(minilm, shared_dir, BertModel, "embeddings.word_embeddings.weight")
    assert min(hidden.shape) > truncated_svd.EXACT_SIZE
    basis = SpectralBasis.from_head(weight)
    gold = value_and_gradient(lambda h: spectral_ratio(h @ weight[::16].double().T, 10, "frobenius"), hidden.double())
    part = SpectralBasis.from_head(weight[::16])
    found = value_and_gradient(lambda h: part.ratio(h, 10), hidden)
    assert float(found[0]) == pytest.approx(float(gold[0]), rel=1e-4)
    assert cosine(found[1], gold[1]) >= 0.999
    krylov = value_and_gradient(lambda h: basis.ratio(h, 10), hidden)
    monkeypatch.setattr(truncated_svd, "EXACT_SIZE", 10_000)
    exact = value_and_gradient(lambda h: basis.ratio(h, 10), hidden)
    assert float(krylov[0]) == pytest.approx(float(exact[0]), rel=1e-4)
    assert cosine(krylov[1], exact[1]) >= 0.999


def test_refuses():
    basis = SpectralBasis.from_head(torch.eye(4))
    with pytest.raises(BALoraError, match="hidden size 4, and the hidden states have 3"):
        basis.ratio(torch.zeros(2, 3), 1)
    with pytest.raises(BALoraError, match="rank must be at least 1"):
        basis.ratio(torch.zeros(2, 4), 0)
    with pytest.raises(BALoraError, match="head of finite numbers"):
        SpectralBasis.from_head(torch.eye(4), torch.tensor([0.0, 0.0, -torch.inf, 0.0]))
    with pytest.raises(BALoraError, match="vocabulary × hidden size"):
        SpectralBasis.from_head(torch.zeros(4))


@pytest.mark.parametrize("kind", ["random", "steep", "dependent", "zero"])
def test_the_orthonormal_basis_of_accelerators_spans_what_qr_spans(kind):
    block = torch.randn(300, 20)
    if kind == "steep":
        block = block * torch.logspace(0, -5, 20)
    elif kind == "dependent":
        block = block[:, :4] @ torch.randn(4, 20)
    elif kind == "zero":
        block = torch.zeros_like(block)
    basis = truncated_svd._cholesky_orthonormal(block)
    torch.testing.assert_close(basis.T @ basis, torch.eye(20), atol=2e-6, rtol=0)
    torch.testing.assert_close(basis @ (basis.T @ block), block, atol=1e-4, rtol=1e-5)

"""PiSSA's initial values against float64 references (eq. 1-3)."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from torch import nn

import balora
from balora import BALoraError
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import weight_matrices
from tiny import tiny_gpt2, tiny_llama


def targets(model: nn.Module) -> dict[str, LoraLayer]:
    return dict(lora_layers(model))


def stored(layer: LoraLayer) -> torch.Tensor:
    """Frozen weight, (out, in), float64."""
    weight = layer.get_base_layer().weight.detach().double()
    return weight.T if layer.fan_in_fan_out else weight


def product(layer: LoraLayer) -> torch.Tensor:
    """s·BA in float64."""
    a, b = (factor["default"].weight.detach().double() for factor in (layer.lora_A, layer.lora_B))
    return layer.scaling["default"] * (b @ a)


def truth(model: nn.Module, name: str) -> torch.Tensor:
    module = model.get_submodule(name)
    weight = module.weight.detach().double()
    return weight.T if type(module).__name__ == "Conv1D" else weight


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 16), (5, 2.5)])
def test_the_factors_are_the_best_approximation_and_the_residual_is_frozen(make, rank, alpha):
    original = make()
    model = balora.adapt(make(), method="pissa", rank=rank, alpha=alpha)
    found = targets(model)
    assert len(found) >= 8
    for name, layer in found.items():
        weight = truth(original, name)
        values = torch.linalg.svdvals(weight)
        assert layer.scaling["default"] == pytest.approx(alpha / rank)
        assert torch.linalg.matrix_rank(product(layer)) == rank
        # Eckart-Young: no matrix of this rank is nearer. (Close singular values make a comparison of entries unreliable.)
        assert (weight - product(layer)).norm() <= values[rank:].norm() * (1 + 1e-6)
        torch.testing.assert_close(stored(layer), weight - product(layer), atol=1e-6 * float(values[0]), rtol=0)
        assert not layer.get_base_layer().weight.requires_grad


def test_both_factors_have_the_square_roots_of_the_singular_values():
    original, model = tiny_llama(), balora.adapt(tiny_llama(), method="pissa", rank=6, alpha=3)
    for name, layer in targets(model).items():
        u, s, vt = torch.linalg.svd(truth(original, name), full_matrices=False)
        a, b = (factor["default"].weight.detach().double() for factor in (layer.lora_A, layer.lora_B))
        # B₀ = U S^½ / √s and A₀ = S^½ Vᵀ / √s with s = alpha / r = 0.5: the squared norms are the singular values over s.
        torch.testing.assert_close(b.square().sum(0), s[:6] / 0.5, atol=0, rtol=1e-4)
        torch.testing.assert_close(a.square().sum(1), s[:6] / 0.5, atol=0, rtol=1e-4)
        # Singular vectors are unique only up to sign, so compare projectors.
        span = torch.linalg.qr(b).Q
        torch.testing.assert_close(span @ span.T, u[:, :6] @ u[:, :6].T, atol=1e-4, rtol=0)
        span = torch.linalg.qr(a.T).Q
        torch.testing.assert_close(span @ span.T, vt[:6].T @ vt[:6], atol=1e-4, rtol=0)


def test_the_randomized_svd_is_within_a_percent_and_keeps_the_function():
    original = tiny_llama(hidden=96)
    tokens = torch.arange(4, 20)[None]
    model = balora.adapt(tiny_llama(hidden=96), method="pissa", rank=4, svd="randomized")
    for name, layer in targets(model).items():
        weight = truth(original, name)
        best = torch.linalg.svdvals(weight)[4:].norm()
        assert (weight - product(layer)).norm() <= 1.01 * best
    moved = (model(tokens).logits - original(tokens).logits).abs().max()
    assert moved <= 1e-5 * original(tokens).logits.abs().max()


def test_few_power_iterations_change_the_factors_but_not_the_function():
    tokens = torch.arange(4, 20)[None]
    rough = balora.adapt(tiny_llama(hidden=96), method="pissa", rank=4, svd="randomized", svd_iterations=0)
    exact = balora.adapt(tiny_llama(hidden=96), method="pissa", rank=4, svd="exact")
    name = "model.layers.0.mlp.up_proj"
    gap = (product(targets(rough)[name]) - product(targets(exact)[name])).norm() / product(targets(exact)[name]).norm()
    assert gap > 1e-2
    torch.testing.assert_close(rough(tokens).logits, exact(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_equal_seeds_give_equal_factors(svd):
    def factors(seed: int, noise: int) -> list[torch.Tensor]:
        torch.manual_seed(noise)
        model = balora.adapt(tiny_llama(hidden=96), method="pissa", rank=4, seed=seed, svd=svd, svd_iterations=0)
        return [p.detach().clone() for p in model.parameters() if p.requires_grad]

    first = factors(0, noise=1)
    assert all(torch.equal(a, b) for a, b in zip(first, factors(0, noise=2), strict=True))
    same = all(torch.equal(a, b) for a, b in zip(first, factors(1, noise=1), strict=True))
    assert same == (svd == "exact")


def test_stored_initial_values_give_the_same_model():
    first = balora.adapt(tiny_llama(hidden=96), rank=4, svd="randomized", svd_iterations=0, seed=5)
    initial = {name: p.detach().clone() for name, p in first.named_parameters() if p.requires_grad}
    # Another seed and the exact decomposition would give other factors, but the stored ones are used.
    again = balora.adapt(tiny_llama(hidden=96), rank=4, svd="exact", seed=6, initial=initial)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_stored_values_of_another_rank_or_model_are_refused():
    first = balora.adapt(tiny_llama(), rank=4)
    initial = {name: p.detach().clone() for name, p in first.named_parameters() if p.requires_grad}
    model = tiny_llama()
    with pytest.raises(BALoraError, match=r"is stored as \(4, 32\) and is \(3, 32\) in this model"):
        balora.adapt(model, rank=3, initial=initial)
    balora.adapt(model, rank=4, initial=initial)  # the model is unchanged after the error
    with pytest.raises(BALoraError, match=r"layers\.1\..*which this model does not train"):
        balora.adapt(tiny_llama(layers=1), rank=4, initial=initial)
    del initial["base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"]
    with pytest.raises(BALoraError, match=r"lack base_model\.model\.model\.layers\.1\.mlp\.up_proj\.lora_A"):
        balora.adapt(tiny_llama(), rank=4, initial=initial)


def test_bfloat16_residuals_hardly_change_the_function():
    tokens = torch.arange(4, 30)[None]
    original = tiny_llama().bfloat16()
    expected = original(tokens).logits.float()
    exact = tiny_llama()(tokens).logits
    model = balora.adapt(tiny_llama().bfloat16(), method="pissa", rank=8)
    layer = targets(model)["model.layers.0.self_attn.q_proj"]
    assert layer.get_base_layer().weight.dtype == torch.bfloat16
    # About the error of bfloat16 itself.
    assert (model(tokens).logits.float() - expected).abs().max() <= 1.5 * (expected - exact).abs().max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"svd": "fast"}, r"method\.svd is one of auto, exact, randomized, not 'fast'"),
        ({"svd_iterations": -1}, r"method\.svd_iterations is a whole number of at least 0, not -1"),
        ({"svd_iterations": True}, r"svd_iterations .* not True"),
        ({"svd_iteration": 3}, r"no option 'svd_iteration'\. Did you mean 'svd_iterations'\?"),
    ],
)
def test_options_are_checked(options, sentence):
    with pytest.raises(BALoraError, match=sentence):
        balora.adapt(tiny_llama(), method="pissa", rank=4, **options)


class Int8Linear(nn.Linear):
    """A layer as quantization libraries build it: integers in memory, a float product in the forward."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = float(linear.weight.abs().max()) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * self.scale).T


@pytest.mark.parametrize("method", ["pissa", "balora", "full"])
def test_a_quantized_model_is_refused_and_unchanged(method):
    model = tiny_llama()
    tokens = torch.arange(4, 12)[None]
    model.model.layers[1].mlp.up_proj = Int8Linear(model.model.layers[1].mlp.up_proj)
    logits = model(tokens).logits
    with pytest.raises(BALoraError, match=r"layers\.1\.mlp\.up_proj.* is quantized.*(method 'lora'|a low-rank method)"):
        balora.adapt(model, method=method, **({} if method == "full" else {"rank": 4}))
    assert torch.equal(model(tokens).logits, logits)
    balora.adapt(model, method="lora", rank=4)  # the alternative that the message names


def test_a_tied_head_is_refused():
    with pytest.raises(
        BALoraError, match=r"lm_head shares its weight with model\.embed_tokens \(tied weights\).*exclude_modules"
    ):
        balora.adapt(tiny_llama(tie_word_embeddings=True), rank=4, target_modules=["lm_head", "q_proj"])


def test_an_untied_head_can_be_adapted():
    tokens = torch.arange(4, 12)[None]
    expected = tiny_llama(tie_word_embeddings=False)(tokens).logits
    model = balora.adapt(tiny_llama(tie_word_embeddings=False), rank=4, target_modules=["lm_head", "q_proj"])
    assert "lm_head" in targets(model)
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=0)


def test_layers_that_share_one_parameter_are_left_out_and_refused_if_they_are_named(caplog):
    def tied() -> transformers.LlamaForCausalLM:
        model = tiny_llama()
        model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
        return model

    names = {matrix.name for matrix in weight_matrices(balora.adapt(tied(), rank=4))}
    assert len(names) == 12 and not any(name.endswith("up_proj") for name in names)
    assert "mlp.up_proj and 1 more get no adapter: the layer shares its weight" in caplog.text
    with pytest.raises(BALoraError, match=r"shares its weight with model\.layers\.\d\.mlp\.up_proj"):
        balora.adapt(tied(), rank=4, target_modules=["up_proj"])
    balora.adapt(tied(), "lora", rank=4, target_modules=["up_proj"])


def test_layers_that_share_memory_are_detected_by_the_changed_function():
    model = tiny_llama()
    first, second = (model.model.layers[i].mlp.up_proj for i in (0, 1))
    second.weight = nn.Parameter(first.weight.data)  # another Parameter over the same memory
    with pytest.raises(BALoraError, match="changed the function of the pre-trained model before training"):
        balora.adapt(model, rank=4)

"""Each method against an independent reference: peft's implementation, a formula, or a property that its paper claims."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import collect_eigens_for_layer
from torch import nn
from transformers import TrainingArguments

import balora
from balora import BALoraTrainer
from balora.methods.init.calibration import calibration_rows, input_covariances, weight_gradients
from balora.methods.init.corda import allocate_ranks, decompose_with_covariance, log_compactness, selection_score
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import weight_matrices
from bench import adapted, rows_for
from tiny import pad_rows, tiny_bert, tiny_gpt2, tiny_llama


def layers_of(model) -> dict:
    return dict(lora_layers(model))


def push(model) -> None:
    """Change all trainable parameters, because B = 0 would hide errors."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def as_matrix(layer, width: int) -> torch.Tensor:
    """Effective weight of a layer, out × in, computed from its outputs for unit vectors."""
    with torch.no_grad():
        bias = layer(torch.zeros(1, width))
        return (layer(torch.eye(width)) - bias).T


# -- rsLoRA, DoRA, OLoRA, MiLoRA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "scale"), [("lora", 10 / 4), ("rslora", 10 / math.sqrt(4))])
def test_the_scaling_of_the_product(method, scale):
    model = adapted(tiny_llama, method, rank=4, alpha=10)
    push(model)
    for name, layer in layers_of(model).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = layer.get_base_layer().weight + scale * b @ a
        torch.testing.assert_close(as_matrix(layer, a.shape[1]), expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2, transposed"])
def test_doras_magnitudes_are_row_norms_and_its_directions_have_norm_one(make):
    model = adapted(make, "dora", rank=4)
    for name, layer in layers_of(model).items():
        weight = layer.get_base_layer().weight
        weight = weight.T if layer.fan_in_fan_out else weight
        magnitude = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(magnitude.detach(), torch.linalg.vector_norm(weight, dim=1), msg=name)
    push(model)
    for name, layer in layers_of(model).items():
        weight = layer.get_base_layer().weight
        weight = weight.T if layer.fan_in_fan_out else weight
        magnitude = layer.lora_magnitude_vector["default"].weight
        direction = weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        found = as_matrix(layer, weight.shape[1])
        torch.testing.assert_close(found, magnitude[:, None] * direction, atol=1e-4, rtol=1e-4, msg=name)


def test_olora_equals_pefts_initialization():
    settings = LoraConfig(r=4, lora_alpha=10, target_modules="all-linear", init_lora_weights="olora")
    reference = dict(get_peft_model(tiny_llama(), settings).named_parameters())
    found = {
        name: p for name, p in adapted(tiny_llama, "olora", rank=4, alpha=10).named_parameters() if "lora_" in name
    }
    assert found
    for name, value in adapted(tiny_llama, "olora", rank=4, alpha=10).named_parameters():
        torch.testing.assert_close(value, reference[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2, transposed"])
def test_milora_moves_only_the_smallest_components_into_the_adapter(make):
    weights = dict(make().named_parameters())
    for matrix in weight_matrices(adapted(make, "milora", rank=4, alpha=10)):
        full = weights[f"{matrix.name}.weight"].double()
        full = full.T if matrix.layer.fan_in_fan_out else full
        # The frozen weight is the best approximation of rank n - 4; the adapter has the rest.
        values = torch.linalg.svdvals(full)
        frozen = torch.linalg.svdvals(matrix.weight_OI.double())
        torch.testing.assert_close(frozen[:-4], values[:-4], atol=1e-5, rtol=1e-5)
        assert frozen[-4:].max() < 1e-5 * values[0]
        part = matrix.scaling * (matrix.factor_b_OR @ matrix.factor_a_RI).double()
        torch.testing.assert_close(torch.linalg.svdvals(part)[:4], values[-4:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(matrix.weight_OI.double() + part, full, atol=1e-5, rtol=1e-5)


# -- LoRA+, LoRA-FA -------------------------------------------------------------------------------------------------------


def optimizer_of(model, tmp_path, **settings):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **settings)
    trainer = BALoraTrainer(model=model, args=arguments, train_dataset=rows_for(model), data_collator=pad_rows)
    return trainer.create_optimizer()


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert], ids=["generation", "with a head"])
def test_loraplus_sets_the_learning_rate_of_b_and_groups_every_parameter_once(make, tmp_path):
    model = adapted(make, "loraplus", lr_ratio=5.0)
    optimizer = optimizer_of(model, tmp_path, learning_rate=1e-3, weight_decay=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(rates) == sorted(id(p) for p in trained.values())
    for name, p in trained.items():
        fast = ".lora_B." in name or p.dim() == 1  # the rule of peft and of LoRA+'s authors: vectors learn at B's rate
        assert rates[id(p)] == pytest.approx(5e-3 if fast else 1e-3), name
        assert decays[id(p)] == (0.0 if p.dim() == 1 else 0.1), name


def test_lorafas_step_of_b_is_the_best_approximation_of_a_full_weight_step(tmp_path):
    """s·g̃·A is the projection of the weight's gradient G onto the row space of A, a least-squares problem."""
    model = adapted(tiny_llama, "lorafa", rank=4, alpha=10)
    optimizer = optimizer_of(model, tmp_path, learning_rate=1e-2)
    layers = layers_of(model)
    full, before, frozen = {}, {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert not a.requires_grad
        full[name] = torch.randn(b.shape[0], a.shape[1], generator=generator).double()
        b.grad = (2.5 * full[name] @ a.double().T).float()  # gradient of B by the chain rule
        frozen[name], before[name] = a.detach().clone(), b.detach().clone()
    optimizer.step()
    for name, layer in layers.items():
        nearest = torch.linalg.lstsq((2.5 * frozen[name].double()).T, full[name].T).solution.T
        found = layer.lora_B["default"].weight
        torch.testing.assert_close(found.grad.double(), nearest, atol=1e-4, rtol=1e-3, msg=name)
        reference = nn.Parameter(before[name])
        reference.grad = nearest.float()
        torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.0).step()
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-3, msg=name)
        assert torch.equal(layer.lora_A["default"].weight, frozen[name])


# -- LoRA-GA --------------------------------------------------------------------------------------------------------------


def calibration(model, count: int = 4) -> list[dict[str, torch.Tensor]]:
    return [pad_rows([row]) for row in rows_for(model)[:count]]


def gradients_of(make) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over the calibration rows at the pre-trained weights, by autograd."""
    model = make()
    for row in (rows := calibration(model)):
        (model(**row).loss / len(rows)).backward()
    return {name: p.grad.T if make is tiny_gpt2 else p.grad for name, p in model.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2, transposed"])
def test_lora_gas_factors_are_singular_directions_of_the_gradient(make):
    expected = gradients_of(make)
    model = adapted(make, "lora", rank=4)
    for matrix, gradient in weight_gradients(model, calibration(model)):
        reference = expected[f"{matrix.name}.weight"]
        torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-4, msg=matrix.name)
    for matrix in weight_matrices(adapted(make, "loraga", rank=4, gamma=9.0)):
        gradient = expected[f"{matrix.name}.weight"].double()
        left, _, right = torch.linalg.svd(gradient)
        a, b = matrix.factor_a_RI.double(), matrix.factor_b_OR.double()
        size = math.sqrt(gradient.shape[0]) / 9.0  # AAᵀ and BᵀB are both size · I
        eye = torch.eye(4).double()
        torch.testing.assert_close(a @ a.T, size * eye, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(b.T @ b, size * eye, atol=1e-5, rtol=1e-4)
        # Compare projectors, because signs are arbitrary: right vectors 1 to r, left vectors r + 1 to 2r.
        torch.testing.assert_close(a.T @ a / size, right[:4].T @ right[:4], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(b @ b.T / size, left[:, 4:8] @ left[:, 4:8].T, atol=1e-3, rtol=1e-3)


def test_lora_gas_first_step_follows_the_gradient_of_the_full_weight():
    expected, alignment = gradients_of(tiny_llama), {}
    for method in ("lora", "pissa", "loraga"):
        model = adapted(tiny_llama, method, rank=4)
        for row in (rows := calibration(model)):
            (model(**row).loss / len(rows)).backward()
        cosines = []
        for name, layer in layers_of(model).items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rate = 1e-3
            moved = (b - rate * b.grad) @ (a - rate * a.grad) - b @ a  # the change of the weight in one SGD step
            cosines.append(torch.cosine_similarity(-moved.flatten(), expected[f"{name}.weight"].flatten(), dim=0))
        alignment[method] = float(torch.stack(cosines).mean())
    assert alignment["loraga"] > alignment["lora"] + 0.2, alignment
    assert alignment["loraga"] > alignment["pissa"] + 0.2, alignment


# -- CorDA, CorDA++ -------------------------------------------------------------------------------------------------------


def inputs_of(make, name: str, rows) -> torch.Tensor:
    """Inputs of one layer over all tokens of the rows, without padding."""
    model, inputs = make(), []
    model.get_submodule(name).register_forward_hook(lambda _, args, output: inputs.append(args[0].detach()))
    for row in rows:
        tokens = row["input_ids"][row["attention_mask"].bool()][None]
        model(input_ids=tokens)
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_the_covariance(side):
    rows = calibration(tiny_llama())
    model = adapted(tiny_llama, "lora")
    padded = []
    for row in rows:
        filler = {"input_ids": 7, "attention_mask": 0, "labels": -100}
        extra = {name: torch.full((1, 5), filler[name]) for name in row}
        order = (lambda a, b: [a, b]) if side == "right" else (lambda a, b: [b, a])
        padded.append({name: torch.cat(order(value, extra[name]), dim=1) for name, value in row.items()})
    options = balora.methods.AdaptOptions(
        rank=4,
        alpha=4,
        dropout=0,
        target_modules="all-linear",
        seed=0,
        extra={"samples": 4},
        calibration=lambda count: padded[:count],
    )
    found = input_covariances(model, calibration_rows(options, model))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        x = inputs_of(tiny_llama, name, rows)
        torch.testing.assert_close(found[name].double(), x.T @ x / len(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["kpm", "ipm"])
def test_corda_equals_pefts_decomposition(mode):
    rows = calibration(tiny_llama(), 6)
    model = adapted(tiny_llama, "corda", rank=4, alpha=10, samples=6, mode=mode)
    plain = tiny_llama()
    for matrix in weight_matrices(model):
        layer = plain.get_submodule(matrix.name)
        x = inputs_of(tiny_llama, matrix.name, rows)
        layer.covariance_matrix = (x.T @ x / len(x)).float()
        eigens = collect_eigens_for_layer(layer, LoraConfig(corda_config=CordaConfig(corda_method=mode)))
        chosen = slice(-4, None) if mode == "kpm" else slice(0, 4)
        expected = eigens.U_WC[:, chosen] * eigens.S_WC[chosen] @ eigens.V_WC[:, chosen].T
        found = matrix.scaling * matrix.factor_b_OR @ matrix.factor_a_RI
        # Components of similar size can mix, but their sum is unique.
        torch.testing.assert_close(found, expected, atol=2e-3 * float(layer.weight.abs().max()), rtol=1e-2)
        full = matrix.weight_OI + found
        torch.testing.assert_close(full, layer.weight.detach(), atol=1e-5, rtol=1e-4)


def test_all_components_add_up_to_the_weight():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 9), torch.randn(30, 9)
    left, values, right = decompose_with_covariance(weight, x.T @ x / 30)
    torch.testing.assert_close(left * values @ right, weight, atol=1e-4, rtol=1e-4)


def test_compactness_and_selection_score_of_an_example():
    values = torch.tensor([8.0, 4.0, 2.0]).double()
    assert math.exp(log_compactness(values, 2)) == pytest.approx(math.sqrt(2 * 8) / 2)
    # The two smallest are 2 and 4: log π · (2 + 4) / 8.
    assert selection_score(values, math.log(3.0), 2) == pytest.approx(math.log(3.0) * 6 / 8)


def test_rank_allocation_of_an_example():
    # log π is 1 and 2. The cost of rank 2 is the second smallest value over the sum of the larger ones, times log π.
    spectra = {"cheap": (torch.tensor([10.0, 5.0, 1.0, 0.5]), 1.0), "dear": (torch.tensor([4.0, 4.0, 4.0, 4.0]), 2.0)}
    shapes = {"cheap": (4, 6), "dear": (4, 4)}
    # cheap: rank 2 costs 1/15, rank 3 costs 5/10. dear: rank 2 costs 2·4/8 = 1, rank 3 costs 2·4/4 = 2.
    # A uniform rank of 2 has 36 parameters; ranks of 1 have 18. cheap 2 (28) fits, cheap 3 (38) does not, dear 2 (36) does.
    assert allocate_ranks(spectra, shapes, 2) == {"cheap": 2, "dear": 2}
    # A uniform rank of 3 has 54: cheap 2 (28), cheap 3 (38), dear 2 (46), dear 3 (54).
    assert allocate_ranks(spectra, shapes, 3) == {"cheap": 3, "dear": 3}
    # With equal prices, cheap gets both additional ranks.
    assert allocate_ranks(spectra, {"cheap": (4, 4), "dear": (4, 4)}, 2) == {"cheap": 3, "dear": 1}


@pytest.mark.parametrize("compactness", ["wc", "c"])
def test_each_layer_uses_the_sample_with_the_smallest_score(compactness):
    model = adapted(tiny_llama, "cordapp", rank=4, candidates=3, samples=2, compactness=compactness)
    rows = calibration(tiny_llama(), 6)
    plain, chosen = tiny_llama(), set()
    for matrix in list(weight_matrices(model))[:5]:
        weight = plain.get_submodule(matrix.name).weight.detach().double()
        parts, scores = [], []
        for number in range(3):
            x = inputs_of(tiny_llama, matrix.name, rows[2 * number : 2 * number + 2])
            covariance = x.T @ x / len(x)
            covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))  # CorDA's damping
            values = torch.linalg.svdvals(weight @ covariance)
            sigma = values if compactness == "wc" else torch.linalg.svdvals(covariance)
            pi = (len(weight) * sigma[0]).sqrt() / sigma[-1]
            scores.append(float(pi.log() * values[-4:].sum() / values[0]))
            left, s, right = decompose_with_covariance(weight.float(), (x.T @ x / len(x)).float())
            parts.append(left[:, -matrix.rank :] * s[-matrix.rank :] @ right[-matrix.rank :])
        best = min(range(3), key=scores.__getitem__)
        chosen.add(best)
        found = matrix.scaling * matrix.factor_b_OR @ matrix.factor_a_RI
        nearest = min(range(3), key=lambda number: float((parts[number] - found).norm()))
        assert nearest == best, (matrix.name, scores)
    assert len(chosen) > 1, "different layers use different samples"


# -- AdaLoRA --------------------------------------------------------------------------------------------------------------


def test_adaloras_penalty_equals_pefts():
    model = adapted(tiny_llama, "adalora", orthogonality=0.3)
    push(model)
    batch = pad_rows(rows_for(model)[:3])
    with_penalty = model(**batch).loss
    bare = copy.deepcopy(model)
    bare.peft_config["default"].orth_reg_weight = 0.0
    added = with_penalty - bare(**batch).loss
    assert float(added.detach()) > 0.1
    found = balora.methods.METHODS["adalora"].penalty(model)
    torch.testing.assert_close(found, added, atol=1e-5, rtol=1e-4)


def test_adalora_without_warmup_and_final_phase_prunes_in_every_step(tmp_path):
    model = adapted(tiny_llama, "adalora", total_steps=4, initial_rank=8, warmup=0, final=0, orthogonality=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_E" in name}
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], max_steps=4, logging_steps=1, disable_tqdm=True
    )
    trainer = BALoraTrainer(
        model=model, args=arguments, train_dataset=rows_for(model), data_collator=pad_rows,
        regularization=balora.RegularizationConfig.off(),
    )  # fmt: skip
    budgets = []
    allocator = model.base_model.rankallocator
    budget = allocator.budget_schedule
    allocator.budget_schedule = lambda step: budgets.append(budget(step)[0]) or budget(step)
    trainer.train()
    layers = len(before)
    assert budgets[0] < 8 * layers and budgets == sorted(budgets, reverse=True) and budgets[-1] == 4 * layers
    ranks = sum(int((p != 0).sum()) for name, p in model.named_parameters() if name in before)
    assert 0 < ranks <= 4 * layers
    assert {entry["penalty"] for entry in trainer.state.log_history if "penalty" in entry} == {0.0}


def test_the_trainer_adds_adaloras_penalty_to_the_objective(tmp_path):
    model = adapted(tiny_llama, "adalora", orthogonality=0.3)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = BALoraTrainer(
        model=model, args=arguments, train_dataset=rows_for(model), data_collator=pad_rows,
        regularization=balora.RegularizationConfig.off(),
    )  # fmt: skip
    model.train()
    batch = pad_rows(rows_for(model)[:3])
    full = trainer.compute_loss(model, dict(batch))
    trainer.method = dataclasses.replace(trainer.method, penalty=None)
    bare = trainer.compute_loss(model, dict(batch))
    expected = balora.methods.METHODS["adalora"].penalty(model)
    assert float(expected.detach()) > 0.1
    torch.testing.assert_close(full - bare, expected, atol=1e-5, rtol=1e-4)

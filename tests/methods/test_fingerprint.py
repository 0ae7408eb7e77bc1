from __future__ import annotations

import pytest
import torch

from balora.methods import fingerprint as module
from balora.methods.fingerprint import fingerprint, first_mismatch


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(30, 40, generator=generator) for name in ("a", "b")}


def differs(**changed: torch.Tensor) -> str | None:
    return first_mismatch(fingerprint({**weights(), **changed}.items()), fingerprint(weights().items()))


def test_equal_tensors_match():
    assert differs() is None


def test_rounding_errors_match():
    assert differs(b=weights()["b"] * (1 + 1e-7)) is None


def test_a_tensor_with_other_values_is_named():
    assert differs(b=weights(1)["b"]) == "b"
    assert differs(b=weights()["b"] * 1.001) == "b"


def test_changed_sign_order_or_layout_is_detected():
    a = weights()["a"]
    assert differs(a=-a) == "a"
    assert differs(a=a.flip(0)) == "a"
    assert differs(a=a.T.contiguous()) == "a"


def test_one_changed_entry_is_detected():
    a = weights()["a"].clone()
    a[3, 4] += 0.5
    assert differs(a=a) == "a"


def test_a_missing_and_an_extra_tensor_are_named():
    assert first_mismatch(fingerprint({"a": torch.ones(2)}.items()), {}) == "a"
    assert first_mismatch({}, fingerprint({"a": torch.ones(2)}.items())) == "a"


def test_nan_never_matches():
    nan = fingerprint({"a": torch.tensor([float("nan")])}.items())
    assert first_mismatch(nan, nan) == "a"


def test_zeros_match_only_zeros():
    zeros = fingerprint({"a": torch.zeros(5)}.items())
    assert first_mismatch(zeros, zeros) is None
    assert first_mismatch(zeros, fingerprint({"a": torch.full((5,), 1e-5)}.items())) == "a"


def test_dtypes_with_equal_values_match_and_integers_are_supported():
    exact = {"a": torch.arange(8.0)}
    assert first_mismatch(fingerprint({"a": exact["a"].bfloat16()}.items()), fingerprint(exact.items())) is None
    left, right = (fingerprint({"a": torch.tensor(v, dtype=torch.int8)}.items()) for v in ([1, -2, 3], [1, -2, 4]))
    assert first_mismatch(left, left) is None
    assert first_mismatch(left, right) == "a"


def test_sums_do_not_depend_on_the_block_size(monkeypatch):
    values = {"a": torch.randn(10_000, generator=torch.Generator().manual_seed(0))}
    single = fingerprint(values.items())
    monkeypatch.setattr(module, "_BLOCK", 997 * 3)
    blocks = fingerprint(values.items())
    assert blocks["a"] == pytest.approx(single["a"], rel=1e-12)
    x = values["a"].double()
    ramp = torch.tensor([i % 997 / 997 for i in range(10_000)], dtype=torch.float64)
    assert blocks["a"] == pytest.approx([float(x @ x), float(x.sum()), float(x @ ramp)], rel=1e-9)
    assert fingerprint({"a": torch.zeros(0)}.items())["a"] == [0.0, 0.0, 0.0]

"""The Triton kernel against the reference form in Triton's interpreter, and through Triton's compiler for a GPU.

The interpreter simulates neither threads nor the types of loop variables. It must be requested before Triton is imported,
so the checks run in another process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from balora.errors import BALoraError
from balora.losses import LinearHead, LossTerms, TopKTeacher, chunked, generation, generation_loss, triton_token_terms
from balora.losses.token_terms import token_terms_
from loss_cases import HEADS, WEIGHTS, Case, assert_same, errors

needs_triton = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('triton')", reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def interpreted():
    """Return a function that calls a function of this module in Triton's interpreter, with a block size."""
    versions = [tuple(map(int, importlib.metadata.version(name).split(".")[:2])) for name in ("triton", "numpy")]
    if versions[0] < (3, 7) and versions[1] >= (2, 5):
        pytest.skip("Triton's interpreter before 3.7 turns arrays into numbers in a way that NumPy 2.5 refuses")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            assert pool.submit(_with_block, 64, _interpreting).result()
        yield lambda check, *given, block=64: pool.submit(_with_block, block, check, *given).result()


def _with_block(block, check, *given):
    with pytest.MonkeyPatch.context() as patch:
        if block:
            patch.setattr(triton_token_terms, "BLOCK", block)
        return check(*given)


def _interpreting() -> bool:
    return triton_token_terms.INTERPRETED


def equal(changes: dict, options: dict, chunk_tokens: int | None = None) -> None:
    case = Case(**changes)
    assert_same(case, case.fused(kernel="triton", chunk_tokens=chunk_tokens, **options), case.reference(**options))


@needs_triton
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_equals_the_reference_form(interpreted, head):
    interpreted(equal, {"tokens": 4, **head}, {}, 2)


@needs_triton
@pytest.mark.parametrize(
    "weights",
    [{"consistency": 0.0}, {"diversity": 0.0}, {"consistency": 0.0, "diversity": 0.0}],
    ids=lambda weights: " ".join(weights),
)
@pytest.mark.parametrize("head", ["linear", "trained, softcap, bias"])
def test_terms_of_weight_zero(interpreted, weights, head):
    interpreted(equal, {"tokens": 3, **HEADS[head]}, weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0}, {"task_loss": "dft"}, {"task_loss": "none"}, {"consistency_tokens": "non_target"}],
    ids=lambda options: ", ".join(map(str, options.values())) or "nll",
)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_on_a_gpu_equals_the_reference_form(head, options, dtype):
    case = Case(dtype=dtype, vocabulary=1500, **head).to("cuda")
    tolerance = {} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    assert_same(case, case.fused(kernel="triton", **options), case.reference(**options), **tolerance)


@needs_triton
@pytest.mark.parametrize(
    "options",
    [{"task_loss": "dft"}, {"task_loss": "none"}, {"task_loss": "dft", "consistency_tokens": "non_target"}],
    ids=["dft", "none", "dft, non_target"],
)
@pytest.mark.parametrize("head", ["linear", "trained, softcap, bias"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_other_losses_of_a_target(interpreted, head, options, temperature):
    interpreted(equal, {"tokens": 3, **HEADS[head]}, {**options, "temperature": temperature})


@needs_triton
@pytest.mark.parametrize(("head", "temperature"), [("linear", 1.0), ("trained, softcap, bias", 3.3)])
def test_other_temperatures(interpreted, head, temperature):
    interpreted(equal, {"tokens": 3, **HEADS[head]}, {"temperature": temperature})


@needs_triton
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "top_k", "block"),
    [
        (1, 128, 7, 64),
        (2, 129, 20, 64),
        (1, 1, 2, 64),
        (2, 2, 2, 64),
        (3, 37, 99, 16),
        (2, 37, 30, 64),
        (2, 1500, 20, 0),
    ],
)
def test_awkward_sizes(interpreted, tokens, vocabulary, top_k, block):
    changes = {"tokens": tokens, "vocabulary": vocabulary, "ignored": slice(0, 0)}
    interpreted(equal, changes, {"top_k": top_k, "spectral": 0.0}, block=block)


def no_worse(changes: dict, dtype: torch.dtype) -> None:
    triton, reference = errors(Case(**changes), dtype, kernel="triton")
    # The interpreter truncates to bfloat16 and the hardware rounds; the test of the compiled form checks the rounding.
    slack = 2.0 if dtype == torch.bfloat16 else 1.1
    assert triton <= slack * reference + 10 * torch.finfo(torch.float32).eps, (triton, reference)
    assert triton < (1e-4 if dtype == torch.float32 else 0.2)


@needs_triton
@pytest.mark.parametrize(
    ("head", "dtype"),
    [
        ("linear", torch.bfloat16),
        ("negative scale", torch.float16),
        ("trained, softcap, bias", torch.float32),
        ("trained, softcap, bias", torch.bfloat16),
    ],
)
def test_no_less_accurate_than_the_reference_form_in_the_same_dtype(interpreted, head, dtype):
    interpreted(no_worse, {"tokens": 7, "hidden": 40, "vocabulary": 907, **HEADS[head]}, dtype, block=256)


@needs_triton
def test_wide_rows_keep_their_precision(interpreted):
    interpreted(no_worse, {"tokens": 3, "hidden": 16, "vocabulary": 5_003}, torch.float32, block=0)


def extreme() -> None:
    case = Case(tokens=3, dtype=torch.float32)
    case.hidden_MD = (1e3 * case.hidden_MD).detach().requires_grad_()
    parts = case.fused(kernel="triton")
    assert torch.isfinite(parts.loss) and torch.isfinite(case.gradients(parts)[0]).all()
    assert_same(case, case.fused(kernel="triton"), case.fused(), rtol=1e-5, atol=1e-5)
    case.hidden_MD = case.hidden_MD.detach().index_fill(1, torch.tensor(0), torch.nan).requires_grad_()
    parts = case.fused(kernel="triton", spectral=0.0)
    assert torch.isnan(parts.loss) and torch.isnan(case.gradients(parts)[0]).any()


@needs_triton
def test_extreme_logits_stay_finite_and_nan_stays_nan(interpreted):
    interpreted(extreme)


def ruled_out(count: int) -> None:
    case = Case(bias=True, vocabulary=50, tokens=3)
    others = [i for i in range(50) if i not in case.labels_M.tolist()]
    case.bias_V[others[:count]] = -torch.inf
    options = {"spectral": 0.0, "top_k": 9}
    assert_same(case, case.fused(kernel="triton", **options), case.reference(**options))


@needs_triton
@pytest.mark.parametrize("count", [9, 46])  # 46 leaves fewer than K
def test_a_token_with_bias_minus_infinity_has_no_effect(interpreted, count):
    interpreted(ruled_out, count, block=16)


def ties(top_k: int) -> None:
    """Any K of several equal scores may be taken, but exactly K."""
    generator = torch.Generator().manual_seed(0)
    logits_mV = torch.randint(0, 3, (2, 61), generator=generator).float()
    labels_m, terms = torch.zeros(2, dtype=torch.long), LossTerms(diversity=1.0, top_k=top_k)
    fast_mV, torch_mV, values_3m, expected_3m = (
        logits_mV.clone(),
        logits_mV.clone(),
        torch.zeros(3, 2),
        torch.zeros(3, 2),
    )
    head = LinearHead(torch.zeros(61, 1))
    triton_token_terms.token_terms_of_products_(fast_mV, None, head, None, labels_m, terms, values_3m, True)
    token_terms_(torch_mV, None, labels_m, terms, None, expected_3m, True)
    torch.testing.assert_close(values_3m, expected_3m)
    without_diversity_mV = logits_mV.softmax(dim=-1).index_add(1, labels_m[:1], -torch.ones(2, 1))
    slope_mV = fast_mV - without_diversity_mV
    assert ((slope_mV.abs() > 1e-5).sum(dim=1) == top_k).all()
    torch.testing.assert_close(
        slope_mV.sort().values, (torch_mV - without_diversity_mV).sort().values, rtol=1e-4, atol=1e-6
    )


@needs_triton
@pytest.mark.parametrize("top_k", [27, 45])
def test_exactly_k_of_several_equal_scores_are_taken(interpreted, top_k):
    interpreted(ties, top_k, block=16)


def unrecorded() -> None:
    case = Case(tokens=4)
    expected = case.reference()
    with torch.no_grad():
        parts = case.fused(kernel="triton")
    assert not parts.loss.requires_grad
    for name in ("loss", "task", "consistency", "diversity"):
        torch.testing.assert_close(getattr(parts, name), getattr(expected, name).detach())
    empty = Case(tokens=4, ignored=slice(None))
    assert not empty.gradients(empty.fused(kernel="triton"))[0].any()


@needs_triton
def test_without_a_gradient_and_without_a_token(interpreted):
    interpreted(unrecorded)


def teachers() -> None:
    case = Case(tokens=6)
    mask_M = torch.arange(6) % 3 != 0
    options = {"spectral": 0.0, "consistency_mask_M": mask_M}
    assert_same(case, case.fused(kernel="triton", **options), case.reference(**options))
    memory = TopKTeacher.of(case.teacher_MD, LinearHead(case.head_VD), top_k=9, temperature=2.0)
    case.teacher_MD = None
    parts, expected = (case.fused(kernel=name, topk_teacher=memory) for name in ("triton", "torch"))
    assert torch.equal(parts.loss, expected.loss)


@needs_triton
def test_consistency_mask_and_topk_teacher(interpreted):
    interpreted(teachers)


SIGNATURE = {"labels": "*i64", "values_stride": "i32", "width": "i32"}


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("bf16", {}),
        ("bf16", {"SOFTCAP": True, "SQUARE": False, "bias": "*bf16", "teacher_bias": "*bf16"}),
        ("fp32", {"TEACHER": False, "teacher": "constexpr", "TOP_K": 0}),
        ("fp64", {}),
    ],
    ids=["paper", "all", "task", "float64"],  # float64 is for tests only, so it may spill a little
)
def test_compiles_for_hopper_without_spilling(dtype, changes, tmp_path, monkeypatch):
    """Check what only the compiler sees: types that change in a loop, and whether a row's values fit the registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    import triton.language as tl

    if triton_token_terms.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 is set: there is nothing to compile")
    wide = "fp64" if dtype == "fp64" else "fp32"
    constants = {"TEACHER": True, "TOP_K": 20, "SOFTCAP": False, "SQUARE": True, "GRADIENT": True, "BLOCKS": 32}
    constants |= {"BLOCK": triton_token_terms.BLOCK, "ACC": tl.float64 if wide == "fp64" else tl.float32, **changes}
    types = {**SIGNATURE, "student": f"*{dtype}", "teacher": f"*{dtype}", "values": f"*{wide}"}
    types |= {"bias": "constexpr", "teacher_bias": "constexpr", **changes}
    signature = {
        p.name: "constexpr" if p.is_constexpr else types.get(p.name, p.annotation_type)
        for p in triton_token_terms._row.params
    }
    constants = {name: constants.get(name) for name, kind in signature.items() if kind == "constexpr"}
    aligned = [name in ("student", "teacher", "bias", "teacher_bias", "width") for name in signature]
    facts = {(i,): [["tt.divisibility", 16]] for i, known in enumerate(aligned) if known}
    source = triton.compiler.ASTSource(triton_token_terms._row, signature, constants, facts)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": triton_token_terms.WARPS})
    (tmp_path / "row.ptx").write_text(compiled.asm["ptx"])
    assert dtype != "bf16" or "cvt.rn.bf16" in compiled.asm["ptx"]
    assert "ld.global.v4" in compiled.asm["ptx"] or dtype == "fp64"  # 16 bytes at a time
    command = [triton.knobs.nvidia.ptxas.path, "-arch=sm_90a", "-v", tmp_path / "row.ptx", "-o", tmp_path / "row.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled, registers = (int(re.search(p, said)[1]) for p in (r"(\d+) bytes spill stores", r"Used (\d+) registers"))
    # Another version of Triton may spill a word or two, which costs nothing.
    assert spilled <= (64 if dtype == "fp64" else 8), said
    assert dtype == "fp64" or registers <= 128, said  # four rows at a time on each multiprocessor


def same_every_time(device: str, vocabulary: int, consistency: float, times: int) -> None:
    case = Case(tokens=301, hidden=64, vocabulary=vocabulary, dtype=torch.float32)
    for name in ("hidden_MD", "teacher_MD", "head_VD", "labels_M"):
        setattr(case, name, getattr(case, name).detach().to(device))
    case.hidden_MD.requires_grad_()
    options = {"consistency": consistency, "spectral": 0.0, "top_k": 20}
    assert_same(case, case.fused(kernel="triton", **options), case.fused(**options), rtol=1e-4, atol=1e-6)
    first = case.gradients(case.fused(kernel="triton", **options))[0]
    for _ in range(times):
        assert torch.equal(case.gradients(case.fused(kernel="triton", **options))[0], first)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("vocabulary", [32_000, 50_257])
@pytest.mark.parametrize("consistency", [0.0, 0.7])
def test_on_a_gpu_it_equals_the_torch_form_and_is_deterministic(vocabulary, consistency):
    """Check what the interpreter cannot show: races between threads."""
    same_every_time("cuda", vocabulary, consistency, 50)


def _compute(**options) -> None:
    hidden = torch.ones(3, 4)
    generation_loss(hidden, torch.tensor([0, 1, 2]), torch.ones(6, 4), hidden, **WEIGHTS, top_k=3, **options)


@needs_triton
def test_refuses_a_device_it_cannot_run_on():
    if triton_token_terms.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 is set: it can run")
    with pytest.raises(BALoraError, match=r"needs a CUDA device, or TRITON_INTERPRET=1.*on cpu; pass kernel='torch'"):
        _compute(kernel="triton")


@needs_triton
def test_the_default_kernel_is_one_line():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    choose = triton_token_terms.choose_kernel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_token_terms, "ON_CUDA", "torch")
        assert (choose(None, cuda), choose("triton", cuda)) == ("torch", "triton")
        patch.setattr(triton_token_terms, "ON_CUDA", "triton")
        assert [choose(None, cuda), choose(None, cpu), choose("torch", cuda)] == ["triton", "torch", "torch"]


@pytest.fixture
def without_triton(monkeypatch):
    """Import the module again as on a machine without Triton."""
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", triton_token_terms.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("choose_kernel", "kernel_problems"):
        for user in (chunked, generation):
            monkeypatch.setattr(user, name, getattr(module, name), raising=False)
    return module


def test_without_triton_the_default_is_torch_and_a_request_is_refused(without_triton, monkeypatch):
    monkeypatch.setattr(without_triton, "ON_CUDA", "triton")
    assert without_triton.choose_kernel(None, torch.device("cuda")) == "torch"
    with pytest.raises(BALoraError, match=r"needs Triton, which cannot be imported .*; pass kernel='torch'"):
        _compute(kernel="triton")
    _compute()
    _compute(kernel="torch")


def test_refuses_an_unknown_kernel():
    with pytest.raises(BALoraError, match="kernel must be 'torch' or 'triton', or None for the default, and it is 'c'"):
        _compute(kernel="c")

"""Table of all fine-tuning methods by name. `docs/how-to/add-a-method.md` shows how to add one.

Importing this module imports neither torch nor peft nor transformers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from balora.errors import BALoraError, shown, suggest
from balora.methods.method import AdaptOptions, LazyFunction, Method
from balora.methods.options import LARGEST, Option, boolean, choice, integer, integers, names, number

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the registry; its name must be new."""
    assert method.name not in METHODS, f"method {method.name} is registered twice"
    METHODS[method.name] = method
    return method


def find_method(name: str) -> Method:
    """Return the method with this name; the error for an unknown name suggests the nearest one."""
    if name not in METHODS:
        raise BALoraError(
            f"There is no method {name!r}.{suggest(name, METHODS)} The methods are {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]


def option_problems(spec: Method, given: Mapping[str, Any]) -> list[str]:
    """List the problems with the values given to a method's options.

    Example:
        >>> option_problems(METHODS["loraplus"], {"lr_rato": 4, "lr_ratio": 0})
        ["Method 'loraplus' has no option 'lr_rato'. Did you mean 'lr_ratio'?", 'method.lr_ratio is a number above 0, not 0.']
    """
    problems, options = [], spec.options
    for key in (key for key in given if key not in options):
        others = ", ".join(name for name, method in METHODS.items() if key in method.options)
        hint = f" Methods that have it: {others}." if others else suggest(key, options)
        problems.append(f"Method {spec.name!r} has no option {key!r}.{hint}")
    return problems + [
        f"method.{key} is {_allowed(options[key], value)}, not {shown(value)}."
        for key, value in given.items()
        if key in options and not (value is None and options[key].default is None) and not options[key].valid(value)
    ]


def _allowed(option: Option, value: Any) -> str:
    """Say what an option takes; the largest number is not worth a word unless it is exceeded."""
    return f"at most {LARGEST:,}" if isinstance(value, int) and value > LARGEST else option.allowed


def _lazy(path: str) -> LazyFunction:
    return LazyFunction(f"balora.methods.{path}")


def _variant(base: Method, **changes: Any) -> Method:
    """Register a copy of a method with other values in some fields."""
    return register(dataclasses.replace(base, **changes))


_WRAP_LORA = _lazy("layers.peft_lora:wrap_lora")
_BITS = "bits of the frozen weights, quantized after the adapter is initialized: 4 (NF4) or 8"
_LORA_OPTIONS = {
    "modules_to_save": names("modules that are trained as a whole beside the adapter, such as embed_tokens or lm_head"),
    "trainable_token_indices": integers("numbers of the tokens whose embeddings are trained beside the adapter"),
    "bits": choice(None, _BITS, (4, 8)),
    "double_quantization": boolean(True, "with 4 bits, whether the scales of the blocks are quantized too"),
}
_FOUR_BITS = _LORA_OPTIONS | {"bits": choice(4, _BITS, (4, 8))}
_SVD = {
    "svd": choice("auto", "exact, randomized, or auto: exact for small matrices", ("auto", "exact", "randomized")),
    "svd_iterations": integer(6, "power iterations of the randomised decomposition"),
}
_ACTIVATIONS = ("gelu", "relu", "silu")
_BETWEEN = "activation between the two layers of each adapter"

_full = register(
    Method(
        name="full",
        summary="Full fine-tuning: every weight learns.",
        paper="-",
        trains="all weights",
        wrap=_lazy("unfreeze:unfreeze_all"),
        form="model",
        low_rank=False,
    )
)
_variant(
    _full,
    name="bitfit",
    summary="Only the bias terms learn.",
    paper="Ben Zaken et al., BitFit, 2021",
    trains="biases (and a classification head)",
    wrap=_lazy("unfreeze:unfreeze_biases"),
    form="tensors",
)
_houlsby = register(
    Method(
        name="houlsby",
        summary="A small network after attention and after the feed-forward layer of each block; rank is its width.",
        paper="Houlsby et al., 2019",
        trains="adapters, layer norms (and a classification head)",
        wrap=_lazy("layers.bottleneck_adapters:wrap_houlsby"),
        form="tensors",
        low_rank=False,
        mergeable=False,
        options={"activation": choice("gelu", _BETWEEN, _ACTIVATIONS)},
    )
)
_variant(
    _houlsby,
    name="pfeiffer",
    summary="A small network after the feed-forward layer of each block; rank is its width.",
    paper="Pfeiffer et al., AdapterFusion, 2020",
    trains="adapters (and a classification head)",
    wrap=_lazy("layers.bottleneck_adapters:wrap_pfeiffer"),
    options={"activation": choice("relu", _BETWEEN, _ACTIVATIONS)},
)
_lora = register(
    Method(
        name="lora",
        summary="A random, B zero; the pre-trained weights are frozen.",
        paper="Hu et al., LoRA, 2021",
        trains="A, B (and a classification head)",
        wrap=_WRAP_LORA,
        options=_LORA_OPTIONS,
    )
)
_variant(
    _lora,
    name="rslora",
    summary="LoRA scaled by alpha / √rank.",
    paper="Kalajdzievski, rsLoRA, 2023",
    wrap=functools.partial(_WRAP_LORA, use_rslora=True),
)
_variant(
    _lora,
    name="adalora",
    summary="P Λ Q with an orthogonality penalty; ranks are pruned by importance on a schedule.",
    paper="Zhang et al., AdaLoRA, 2023",
    trains="P, Λ, Q (and a classification head)",
    wrap=_lazy("layers.adalora:wrap_adalora"),
    needs_steps=True,
    options={
        "initial_rank": integer(
            None, "rank before pruning, default 1.5 × rank; the average rank after pruning is rank", least=1
        ),
        "warmup": number(0.1, "fraction of the steps before ranks are pruned", most=1.0, including_least=True),
        "final": number(
            0.3, "fraction of the steps at the end, in which ranks do not change", most=1.0, including_least=True
        ),
        "interval": integer(1, "optimizer steps between two pruning steps", least=1),
        "orthogonality": number(0.5, "weight of the penalty on P and Q", including_least=True),
        "beta1": number(0.85, "smoothing of the importance", most=0.999999),
        "beta2": number(0.85, "smoothing of its uncertainty", most=0.999999),
    },
    after_step=_lazy("layers.adalora:allocate_ranks"),
    penalty=_lazy("layers.adalora:orthogonality_penalty"),
    state=_lazy("layers.adalora:allocator_state"),
    restore=_lazy("layers.adalora:restore_allocator"),
)
_variant(
    _lora,
    name="dora",
    summary="LoRA that trains the magnitude (column norms of W) and the direction separately.",
    paper="Liu et al., DoRA, 2024",
    trains="m, A, B (and a classification head)",
    wrap=functools.partial(_WRAP_LORA, use_dora=True),
    check=_lazy("layers.peft_lora:check_dora"),
)
_variant(
    _lora,
    name="loraplus",
    summary="LoRA with a higher learning rate for B than for A.",
    paper="Hayou et al., LoRA+, 2024",
    options={"lr_ratio": number(16.0, "learning rate of B over that of A"), **_LORA_OPTIONS},
    optimizer=_lazy("optimizers:make_loraplus"),
)
_variant(
    _lora,
    name="lorafa",
    summary="LoRA with A frozen at its random initial values, and a corrected gradient of B.",
    paper="Zhang et al., LoRA-FA, 2023",
    trains="B (and a classification head)",
    wrap=_lazy("optimizers:wrap_lorafa"),
    optimizer=_lazy("optimizers:make_lorafa"),
)
_loraga = _variant(
    _lora,
    name="loraga",
    summary="A and B from the gradient's singular directions; their product is subtracted from the weights.",
    paper="Wang et al., LoRA-GA, 2024",
    check=_lazy("init.lora_ga:check_lora_ga"),
    initialize=_lazy("init.lora_ga:initialize_lora_ga"),
    residual_base=True,
    needs_data=True,
    options={
        "samples": integer(64, "training rows from which the gradient is computed", least=1),
        "gamma": number(16.0, "γ: larger values make the factors smaller"),
        **_LORA_OPTIONS,
    },
)
_milora = _variant(
    _lora,
    name="milora",
    summary="A and B start as the minor singular components; the principal part is frozen.",
    paper="Wang et al., MiLoRA, 2024",
    check=_lazy("init.residual_init:check_residual_targets"),
    initialize=_lazy("init.residual_init:initialize_milora"),
    residual_base=True,
)
_variant(
    _milora,
    name="olora",
    summary="A and B start from a QR decomposition, B orthonormal; the rest is frozen.",
    paper="Büyükakyüz, OLoRA, 2024",
    initialize=_lazy("init.residual_init:initialize_olora"),
)
_corda = _variant(
    _loraga,
    name="corda",
    summary="Decomposes each weight by the covariance of its inputs; the smallest (kpm) or largest (ipm) components learn.",
    paper="Yang et al., CorDA, 2024",
    check=_lazy("init.corda:check_corda"),
    initialize=_lazy("init.corda:initialize_corda"),
    options={
        "mode": choice(
            "kpm",
            "kpm (knowledge-preserving: the r smallest components learn) or ipm (instruction-previewed: the r largest)",
            ("kpm", "ipm"),
        ),
        "samples": integer(256, "training rows from which the covariance of the inputs is computed", least=1),
        **_LORA_OPTIONS,
    },
)
_variant(
    _corda,
    name="cordapp",
    summary="CorDA++: CorDA (kpm) with a covariance and a rank chosen for each layer from the data.",
    paper="Yang et al., CorDA++, 2025",
    initialize=_lazy("init.corda:initialize_corda_plus"),
    uneven=True,
    options={
        "candidates": integer(8, "calibration samples to choose from", least=1),
        "samples": integer(32, "training rows in each calibration sample", least=1),
        "compactness": choice(
            "wc", "matrix whose singular values define the compactness: W·C (wc) or C (c)", ("wc", "c")
        ),
        **_LORA_OPTIONS,
    },
)
_pissa = _variant(
    _milora,
    name="pissa",
    summary="A and B start as the principal singular components; the residual is frozen.",
    paper="Meng et al., PiSSA, 2024",
    initialize=_lazy("init.residual_init:initialize_pissa"),
    options=_SVD | _LORA_OPTIONS,
)
_balora = _variant(
    _pissa,
    name="balora",
    summary="PiSSA with three regularizers on the outputs: consistency, diversity, spectral.",
    paper="Chang et al., BA-LoRA, ICLR 2026",
    regularized=True,
)
_variant(
    _lora,
    name="dft",
    summary="LoRA; the loss of each target is multiplied by its probability, a constant.",
    paper="Wu et al., DFT, 2025",
    objective={"task_loss": "dft"},
)
_variant(
    _lora,
    name="asft",
    summary="LoRA with the loss of DFT, and a KL divergence from the pre-trained model on the targets' positions.",
    paper="Zhu et al., Anchored SFT, ICLR 2026",
    objective={"task_loss": "dft", "consistency": 0.1, "temperature": 1.0, "consistency_schedule": "constant"},
)
_variant(
    _lora,
    name="qlora",
    summary="LoRA on weights in 4 bits (NF4).",
    paper="Dettmers et al., QLoRA, 2023",
    options=_FOUR_BITS,
)
_variant(
    _pissa,
    name="qpissa",
    summary="PiSSA on weights in 4 bits (NF4): quantizing only the residual gives a smaller error.",
    options=_SVD | _FOUR_BITS,
)
_variant(
    _balora,
    name="qbalora",
    summary="BA-LoRA on a residual in 4 bits (NF4).",
    options=_SVD | _FOUR_BITS,
)

__all__ = ["METHODS", "AdaptOptions", "Method", "find_method", "option_problems", "register"]

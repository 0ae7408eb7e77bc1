"""Every fine-tuning method by name. A new one is a module with a `build` function and an entry here."""

from balora.methods.adapt import adapt, load_trainable
from balora.methods.full import build_full
from balora.methods.low_rank import build_lora
from balora.methods.pissa import build_pissa
from balora.methods.registry import METHODS, AdaptOptions, Method, find_method, register

register(
    Method(
        name="full",
        summary="Full fine-tuning: every weight learns.",
        paper="-",
        trains="all weights",
        build=build_full,
        low_rank=False,
    )
)
register(
    Method(
        name="lora",
        summary="A random, B zero; the pre-trained weights are frozen.",
        paper="Hu et al., LoRA, 2021",
        trains="A, B (and a classification head)",
        build=build_lora,
    )
)
register(
    Method(
        name="pissa",
        summary="A and B start as the principal singular components; the residual is frozen.",
        paper="Meng et al., PiSSA, 2024",
        trains="A, B (and a classification head)",
        build=build_pissa,
        shifts_base=True,
        options=("svd", "svd_iterations"),
    )
)
register(
    Method(
        name="balora",
        summary="PiSSA with three regularizers on the outputs: consistency, diversity, spectral.",
        paper="Chang et al., BA-LoRA, ICLR 2026",
        trains="A, B (and a classification head)",
        build=build_pissa,
        shifts_base=True,
        regularized=True,
        options=("svd", "svd_iterations"),
    )
)

__all__ = ["METHODS", "AdaptOptions", "Method", "adapt", "find_method", "load_trainable", "register"]

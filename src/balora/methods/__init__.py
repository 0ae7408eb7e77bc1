"""Every fine-tuning method by name. A new one is a module with a `wrap` or a `start`, and an entry here."""

from functools import partial

from balora.methods import optimizers
from balora.methods.adapt import adapt, load_trainable
from balora.methods.init import corda, corda_plus, lora_ga, pissa
from balora.methods.init.milora import start_milora
from balora.methods.init.olora import start_olora
from balora.methods.init.residual_init import refuse_unsuitable
from balora.methods.layers import adalora
from balora.methods.layers import bottleneck_adapters as bottleneck
from balora.methods.layers.dora import check_dora
from balora.methods.layers.full import bitfit, full
from balora.methods.layers.peft_lora import wrap
from balora.methods.quantization import quantize as quantization
from balora.methods.registry import METHODS, AdaptOptions, Method, find_method, register

_FACTORS = "A, B (and a classification head)"

register(
    Method(
        name="full",
        summary="Full fine-tuning: every weight learns.",
        paper="-",
        trains="all weights",
        wrap=full,
        form="model",
        low_rank=False,
    )
)
register(
    Method(
        name="bitfit",
        summary="Bias terms alone.",
        paper="Ben Zaken et al., BitFit, 2021",
        trains="biases (and a classification head)",
        wrap=bitfit,
        form="tensors",
        low_rank=False,
    )
)
register(
    Method(
        name="houlsby",
        summary="A small network after attention and after the feed-forward layer of each block; rank is its width.",
        paper="Houlsby et al., 2019",
        trains="adapters, layer norms (and a classification head)",
        wrap=bottleneck.houlsby,
        form="tensors",
        low_rank=False,
        mergeable=False,
        options=bottleneck.HOULSBY_OPTIONS,
    )
)
register(
    Method(
        name="pfeiffer",
        summary="A small network after the feed-forward layer of each block; rank is its width.",
        paper="Pfeiffer et al., AdapterFusion, 2020",
        trains="adapters (and a classification head)",
        wrap=bottleneck.pfeiffer,
        form="tensors",
        low_rank=False,
        mergeable=False,
        options=bottleneck.PFEIFFER_OPTIONS,
    )
)
register(
    Method(
        name="lora",
        summary="A random, B zero; the pre-trained weights are frozen.",
        paper="Hu et al., LoRA, 2021",
        trains=_FACTORS,
        wrap=wrap,
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="rslora",
        summary="LoRA scaled by alpha / √rank.",
        paper="Kalajdzievski, rsLoRA, 2023",
        trains=_FACTORS,
        wrap=partial(wrap, use_rslora=True),
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="adalora",
        summary="P Λ Q with an orthogonality penalty; ranks are pruned by importance on a schedule.",
        paper="Zhang et al., AdaLoRA, 2023",
        trains="P, Λ, Q (and a classification head)",
        wrap=adalora.wrap_adalora,
        needs_steps=True,
        options=adalora.OPTIONS,
        after_step=adalora.allocate,
        penalty=adalora.orthogonality,
        state=adalora.allocator_state,
        restore=adalora.restore_allocator,
    )
)
register(
    Method(
        name="dora",
        summary="Magnitude (column norms of W) and direction (LoRA) apart.",
        paper="Liu et al., DoRA, 2024",
        trains="m, A, B (and a classification head)",
        wrap=partial(wrap, use_dora=True),
        check=check_dora,
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="loraplus",
        summary="LoRA, B with a higher learning rate than A.",
        paper="Hayou et al., LoRA+, 2024",
        trains=_FACTORS,
        wrap=wrap,
        options={**optimizers.LORAPLUS_OPTIONS, **quantization.OPTIONS},
        optimizer=optimizers.loraplus,
    )
)
register(
    Method(
        name="lorafa",
        summary="LoRA with A frozen at its random start, B's gradient corrected.",
        paper="Zhang et al., LoRA-FA, 2023",
        trains="B (and a classification head)",
        wrap=optimizers.wrap_lorafa,
        optimizer=optimizers.lorafa,
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="loraga",
        summary="A and B from the gradient's singular directions; their product is taken out of the weights.",
        paper="Wang et al., LoRA-GA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=lora_ga.check_lora_ga,
        start=lora_ga.start_lora_ga,
        shifts_base=True,
        needs_data=True,
        options={**lora_ga.OPTIONS, **quantization.OPTIONS},
    )
)
register(
    Method(
        name="milora",
        summary="A and B start as the minor singular components; the principal part is frozen.",
        paper="Wang et al., MiLoRA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=start_milora,
        shifts_base=True,
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="olora",
        summary="A and B start from a QR decomposition, B orthonormal; the rest is frozen.",
        paper="Büyükakyüz, OLoRA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=start_olora,
        shifts_base=True,
        options=quantization.OPTIONS,
    )
)
register(
    Method(
        name="corda",
        summary="Decomposes each weight in the light of its inputs; the least (kpm) or most (ipm) of it learns.",
        paper="Yang et al., CorDA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=corda.check_corda,
        start=corda.start_corda,
        shifts_base=True,
        needs_data=True,
        options={**corda.OPTIONS, **quantization.OPTIONS},
    )
)
register(
    Method(
        name="cordapp",
        summary="CorDA++: CorDA (kpm) with covariances and ranks chosen from the data, layer by layer.",
        paper="Yang et al., CorDA++, 2025",
        trains=_FACTORS,
        wrap=wrap,
        check=corda.check_corda,
        start=corda_plus.start_corda_plus,
        shifts_base=True,
        needs_data=True,
        uneven=True,
        options={**corda_plus.OPTIONS, **quantization.OPTIONS},
    )
)
register(
    Method(
        name="pissa",
        summary="A and B start as the principal singular components; the residual is frozen.",
        paper="Meng et al., PiSSA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=pissa.start_pissa,
        shifts_base=True,
        options={**pissa.OPTIONS, **quantization.OPTIONS},
    )
)
register(
    Method(
        name="balora",
        summary="PiSSA with three regularizers on the outputs: consistency, diversity, spectral.",
        paper="Chang et al., BA-LoRA, ICLR 2026",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=pissa.start_pissa,
        shifts_base=True,
        regularized=True,
        options={**pissa.OPTIONS, **quantization.OPTIONS},
    )
)
register(
    Method(
        name="qlora",
        summary="LoRA on weights in 4 bits (NF4).",
        paper="Dettmers et al., QLoRA, 2023",
        trains=_FACTORS,
        wrap=wrap,
        options=quantization.FOUR_BITS,
    )
)
register(
    Method(
        name="qpissa",
        summary="PiSSA on weights in 4 bits (NF4): what is rounded is the residual, and loses less.",
        paper="Meng et al., PiSSA, 2024",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=pissa.start_pissa,
        shifts_base=True,
        options={**pissa.OPTIONS, **quantization.FOUR_BITS},
    )
)
register(
    Method(
        name="qbalora",
        summary="BA-LoRA on a residual in 4 bits (NF4).",
        paper="Chang et al., BA-LoRA, ICLR 2026",
        trains=_FACTORS,
        wrap=wrap,
        check=refuse_unsuitable,
        start=pissa.start_pissa,
        shifts_base=True,
        regularized=True,
        options={**pissa.OPTIONS, **quantization.FOUR_BITS},
    )
)

__all__ = ["METHODS", "AdaptOptions", "Method", "adapt", "find_method", "load_trainable", "register"]

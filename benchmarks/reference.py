"""A plain reading of BA-LoRA: a second model, full logits, an exact SVD of tokens × vocabulary.

Written from the description of the method (eq. 9-12), with the shift of the labels that it needs. balora is measured
against it. Shapes: B sequences, T positions, M valid tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONSISTENCY, DIVERSITY, SPECTRAL = 0.025, 0.005, 0.005
TEMPERATURE, TOP_K, SPECTRAL_RANK = 2.0, 20, 10


def reference_loss(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the regularized loss of one batch."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        teacher_BTV = teacher(**inputs).logits[:, :-1]
    student_BTV = student(**inputs).logits[:, :-1]
    labels_BT = batch["labels"][:, 1:]
    valid_BT = labels_BT != -100
    z_F, z_P, labels = student_BTV[valid_BT].float(), teacher_BTV[valid_BT].float(), labels_BT[valid_BT]
    log_f, p = (z_F / TEMPERATURE).log_softmax(-1), (z_P / TEMPERATURE).softmax(-1)
    divergence = F.kl_div(log_f, p, reduction="batchmean") * TEMPERATURE**2
    top = z_F.topk(TOP_K, dim=-1).values
    negative_entropy = (top.softmax(-1) * top.log_softmax(-1)).sum(-1).mean()
    values = torch.linalg.svdvals(z_F)
    ratio = -values[:SPECTRAL_RANK].sum() / torch.linalg.matrix_norm(z_F)
    return F.cross_entropy(z_F, labels) + CONSISTENCY * divergence + DIVERSITY * negative_entropy + SPECTRAL * ratio

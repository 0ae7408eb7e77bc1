"""The paper's regularizers as plain formulas, written to be read beside the equations.

Training uses the fast forms in :mod:`balora.losses`, which the tests compare with these.
"""

from balora.regularizers.consistency import consistency, consistency_mse, consistency_topk
from balora.regularizers.diversity import covariance, topk_negative_entropy, variance_hinge
from balora.regularizers.spectral import spectral_is_constant, spectral_ratio
from balora.schedules import SCHEDULES, schedule_weight

__all__ = [
    "SCHEDULES",
    "consistency",
    "consistency_mse",
    "consistency_topk",
    "covariance",
    "schedule_weight",
    "spectral_is_constant",
    "spectral_ratio",
    "topk_negative_entropy",
    "variance_hinge",
]

"""Scores, and the baselines they are read against.

Everything here works on plain arrays with numpy, scipy and scikit-learn. Effects are log2 fold
changes of shape ``(profiles, genes)`` in which NaN marks a gene that was not measured.
"""

from cfm.metrics._bootstrap import paired_bootstrap
from cfm.metrics._calibration import brier_score, expected_calibration_error
from cfm.metrics._direction_baselines import GeneMean, MajoritySign, NearestProfiles
from cfm.metrics._direction_kernel import CorrelationKernel, EffectPCA, SignedSetSVD
from cfm.metrics._direction_scores import direction_scores, size_scores
from cfm.metrics._discrimination import discrimination_score
from cfm.metrics._distribution_distances import e_distance, mean_squared_distance, mmd
from cfm.metrics._effect_scores import delta_cosine, delta_pearson, delta_r2, direction_accuracy
from cfm.metrics._gene_distributions import gene_mean_correlation, gene_wasserstein
from cfm.metrics._null import pooled_p_values
from cfm.metrics._perturbation_baselines import (
    additive_shift,
    linear_shift,
    mean_shift,
    nearest_shift,
)
from cfm.metrics._ranking import (
    average_precision,
    enrichment_factor,
    hits_at,
    odds_ratio_at,
    permutation_interval,
)
from cfm.metrics._scores import accuracy, auroc, macro_f1, recall_per_class, top_k_accuracy
from cfm.metrics._virus_baselines import (
    InterferonRule,
    VirusGradientBoosting,
    VirusLogisticRegression,
    VirusNeighbors,
    center_effects,
)
from cfm.metrics._weights import unit_weights

__all__ = [
    "CorrelationKernel",
    "EffectPCA",
    "GeneMean",
    "InterferonRule",
    "MajoritySign",
    "NearestProfiles",
    "SignedSetSVD",
    "VirusGradientBoosting",
    "VirusLogisticRegression",
    "VirusNeighbors",
    "accuracy",
    "additive_shift",
    "auroc",
    "average_precision",
    "brier_score",
    "center_effects",
    "delta_cosine",
    "delta_pearson",
    "delta_r2",
    "direction_accuracy",
    "direction_scores",
    "discrimination_score",
    "e_distance",
    "enrichment_factor",
    "expected_calibration_error",
    "gene_mean_correlation",
    "gene_wasserstein",
    "hits_at",
    "linear_shift",
    "macro_f1",
    "mean_shift",
    "mean_squared_distance",
    "mmd",
    "nearest_shift",
    "odds_ratio_at",
    "paired_bootstrap",
    "permutation_interval",
    "pooled_p_values",
    "recall_per_class",
    "size_scores",
    "top_k_accuracy",
    "unit_weights",
]

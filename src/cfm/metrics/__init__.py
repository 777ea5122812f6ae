"""Scores, and the baselines they are read against.

Everything here works on plain arrays with numpy, scipy and scikit-learn. Effects are log2 fold
changes of shape ``(profiles, genes)`` in which NaN marks a gene that was not measured.
"""

from cfm.metrics._classes import (
    auroc,
    brier_score,
    expected_calibration_error,
    top_k_accuracy,
    unit_weights,
)
from cfm.metrics._directions import (
    CorrelationKernel,
    EffectPCA,
    GeneMean,
    MajoritySign,
    NearestProfiles,
    SignedSetSVD,
    direction_scores,
    size_scores,
)
from cfm.metrics._perturbation_baselines import (
    additive_shift,
    linear_shift,
    mean_shift,
    nearest_shift,
)
from cfm.metrics._perturbation_scores import (
    challenge_score,
    delta_cosine,
    delta_pearson,
    delta_r2,
    direction_accuracy,
    discrimination_score,
    e_distance,
    gene_mean_correlation,
    gene_wasserstein,
    ilisi,
    mean_squared_distance,
    mmd,
)
from cfm.metrics._rankings import (
    average_precision,
    enrichment_factor,
    hits_at,
    odds_ratio_at,
    paired_bootstrap,
    permutation_interval,
)
from cfm.metrics._virus_baselines import (
    InterferonRule,
    VirusLogisticRegression,
    VirusNeighbors,
    center_effects,
)

__all__ = [
    "CorrelationKernel",
    "EffectPCA",
    "GeneMean",
    "InterferonRule",
    "MajoritySign",
    "NearestProfiles",
    "SignedSetSVD",
    "VirusLogisticRegression",
    "VirusNeighbors",
    "additive_shift",
    "auroc",
    "average_precision",
    "brier_score",
    "center_effects",
    "challenge_score",
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
    "ilisi",
    "linear_shift",
    "mean_shift",
    "mean_squared_distance",
    "mmd",
    "nearest_shift",
    "odds_ratio_at",
    "paired_bootstrap",
    "permutation_interval",
    "size_scores",
    "top_k_accuracy",
    "unit_weights",
]

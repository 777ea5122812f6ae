"""Real and simulated cells of which the effects are known, and a table of scores, made up."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

GROUPS = ["B cell", "T cell"]
GENES = [f"GENE{i}" for i in range(30)]
#: Real and simulated change of log expression, by group.
REAL = {"B cell": np.linspace(-1, 2, 30), "T cell": np.linspace(2, -1, 30)}
MADE = {"B cell": 0.5 * REAL["B cell"], "T cell": -REAL["T cell"]}
METRICS = {"delta_pearson": True, "e_distance": False, "mmd": False}
METHODS = ["LingshuCell", "control", "mean_shift", "ceiling"]


def cells(level: str, shift: dict[str, np.ndarray], n: int = 6) -> ad.AnnData:
    """``n`` cells of each group, log expression 5 plus the shift; deviations add to zero."""
    wiggle = np.linspace(-0.3, 0.3, n)[:, None]
    x = np.concatenate([5.0 + shift[group] + wiggle for group in GROUPS])
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical([level] * len(x)),
            "cell_type": pd.Categorical(np.repeat(GROUPS, n)),
        },
        index=[f"{level}{i}" for i in range(len(x))],
    )
    return ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def make_screen() -> tuple[ad.AnnData, ad.AnnData]:
    """Real cells, control and IFN; and cells simulated with IFN."""
    none = {group: np.zeros(30) for group in GROUPS}
    real = ad.concat([cells("none", none), cells("IFN", REAL)])
    made = cells("IFN", MADE)
    made.obs_names = [f"{name}-made" for name in made.obs_names]
    made.obs["simulated_by"] = "Model"
    made.var["simulated"] = True
    made.uns["simulation"] = {"params": {"key": "condition", "control": "none", "units": "log"}}
    real.uns["log1p"] = {"base": None}
    return real, made


def as_counts(adata: ad.AnnData, seed: int = 0) -> ad.AnnData:
    """The same design with counts."""
    rng = np.random.default_rng(seed)
    out = adata.copy()
    depth = rng.uniform(50, 400, size=(out.n_obs, 1))
    share = np.exp(np.asarray(adata.X))
    mean = depth * share / share.sum(axis=1, keepdims=True)
    out.X = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    return out


def make_scores(groups: list[str] | None = None) -> pd.DataFrame:
    """The table of the tool: the model wins the distances, mean shift the correlation."""
    rows = []
    values = {
        "delta_pearson": (0.8, np.nan, 0.9, 0.97),
        "e_distance": (1.0, 4.0, 2.0, 0.2),
        "mmd": (0.01, 0.2, 0.1, 0.002),
    }
    cases = itertools.product(groups or GROUPS, METRICS.items(), enumerate(METHODS))
    for group, (metric, higher), (i, method) in cases:
        value = values[metric][i] + 0.01 * (groups or GROUPS).index(group)
        rows.append((group, "IFN", metric, method, value, higher, 40, 60))
    names = ["group", "perturbation", "metric", "method", "value", "higher_is_better"]
    return pd.DataFrame(rows, columns=[*names, "n_real", "n_simulated"])

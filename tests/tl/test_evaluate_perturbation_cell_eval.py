"""Metrics of cell-eval through our call, and ours against theirs."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from tests.tl._perturbed import N_GENES, evaluate, perturbed_cells, simulated, values

cell_eval = pytest.importorskip("cell_eval")

THEIRS = ["cell_eval:pearson_delta", "cell_eval:discrimination_score_l1", "cell_eval:mae"]


def _many(seed: int, n_perturbations: int = 6, noise: float = 0.0) -> ad.AnnData:
    """Log expression of a group with perturbations of genes, whose own expression falls."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    level = truth.uniform(1, 4, N_GENES)
    rows, labels = [], []
    for p in range(-1, n_perturbations):
        effect = truth.normal(size=N_GENES) * (truth.random(N_GENES) < 0.3) if p >= 0 else 0.0
        effect = effect + noise * rng.normal(size=N_GENES) * (p >= 0)
        rows.append(level + effect + 0.5 * rng.normal(size=(25, N_GENES)))
        labels += ["ctrl" if p < 0 else f"GENE{p}"] * 25
    adata = ad.AnnData(np.vstack(rows).clip(0).astype(np.float32))
    adata.var_names = [f"GENE{i}" for i in range(N_GENES)]
    adata.obs["treatment"] = labels
    adata.uns["log1p"] = {"base": None}
    adata.obs_names = [f"s{seed}-{i}" for i in range(adata.n_obs)]
    return adata


@pytest.mark.parametrize("sparse", [False, True])
def test_ours_are_those_of_cell_eval(sparse: bool) -> None:
    real, made = _many(0), _many(1, noise=3.0)
    if sparse:
        real.X, made.X = sp.csr_matrix(real.X), sp.csc_matrix(made.X)
    metrics = ["delta_pearson", "discrimination_score", *THEIRS]
    table = evaluate(real, {"mine": made}, groupby=None, metrics=metrics)
    for ours, theirs in zip(metrics, THEIRS[:2], strict=False):
        found, expected = values(table, ours), values(table, theirs)
        # theirs has no correlation for no effect, and breaks ties by position
        for method in ("mine", "mean_shift"):
            np.testing.assert_allclose(found[method], expected[method], atol=1e-5)
    assert values(table, "discrimination_score")["mine"].nunique() > 1
    mae = table[table["metric"] == "cell_eval:mae"]
    assert not mae["higher_is_better"].any() and mae["value"].notna().any()
    means = [a.to_df().groupby(a.obs["treatment"]).mean() for a in (real, made)]
    expected = (means[0] - means[1]).abs().mean(axis=1).drop("ctrl")
    np.testing.assert_allclose(values(table, "cell_eval:mae")["mine"], expected, atol=1e-5)


@pytest.mark.slow
def test_everything_that_cell_eval_scores_is_there() -> None:
    table = evaluate(
        _many(0),
        {"mine": _many(1)},
        groupby=None,
        metrics="cell_eval",
        baselines=["control", "ceiling"],
    )
    names = set(table["metric"])
    assert {f"cell_eval:{m}" for m in ("mae", "overlap_at_N", "de_spearman_sig", "pr_auc")} <= names
    assert all(name.startswith("cell_eval:") for name in names)
    assert set(table["method"]) == {"mine", "control", "ceiling"}
    table = table.set_index(["metric", "method"])["value"]
    for metric in ("pearson_delta", "pr_auc", "overlap_at_N", "de_direction_match"):
        scores = table[f"cell_eval:{metric}"]
        assert scores["mine"].mean() > 0.8 > 0.6 > scores["control"].fillna(0.0).mean()
        assert scores["ceiling"].mean() > 0.7


def test_groups_are_runs_of_their_own_and_repeat() -> None:
    cells, made = perturbed_cells(n=12), simulated(n=12)
    options = {"metrics": THEIRS[:1], "baselines": [], "n_halves": 1}
    table = evaluate(cells, {"mine": made}, **options)
    assert set(table["group"]) == {"T", "B", "NK"}
    assert (values(table, THEIRS[0])["mine"] > 0.95).all()
    one = cells[(cells.obs["cell_type"] == "T").to_numpy()].copy()
    alone = evaluate(one, {"mine": made[:36].copy()}, **options)
    np.testing.assert_allclose(
        values(alone, THEIRS[0]), values(table, THEIRS[0]).loc[["T"]], atol=1e-6
    )


def test_what_is_no_log1p_is_refused() -> None:
    cells, made = perturbed_cells(n=12), simulated(n=12)
    cells.X -= 10.0
    with pytest.raises(ValueError, match="cell-eval takes log1p-normalised"):
        evaluate(cells, {"mine": made}, units="log", metrics=THEIRS[:1])


def test_without_cell_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cell_eval.metrics", None)
    with pytest.raises(ImportError, match=r"cfm-tools\[eval\]"):
        evaluate(perturbed_cells(n=10), {"mine": simulated(n=10)}, metrics="cell_eval")

"""Metrics of cell-eval through our call, and ours against theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cfm.metrics import challenge_score
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


def _made(seed: int, noise: float = 0.0) -> ad.AnnData:
    """Perturbed cells of another draw."""
    cells = _many(seed, noise=noise)
    return cells[(cells.obs["treatment"] != "ctrl").to_numpy()].copy()


@pytest.mark.parametrize("sparse", [False, True])
def test_ours_are_those_of_cell_eval(sparse: bool) -> None:
    real, made = _many(0), _made(1, noise=3.0)
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
    expected = (means[0].drop("ctrl") - means[1]).abs().mean(axis=1)
    np.testing.assert_allclose(values(table, "cell_eval:mae")["mine"], expected, atol=1e-5)


@pytest.mark.slow
def test_everything_that_cell_eval_scores_is_there() -> None:
    table = evaluate(
        _many(0),
        {"mine": _made(1)},
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


def _in_cell_eval(real: ad.AnnData, made: ad.AnnData, folder: Path) -> pd.DataFrame:
    """Run cell-eval itself, on the predictions and the observed controls."""
    controls = real[(real.obs["treatment"] == "ctrl").to_numpy()]
    run = cell_eval.MetricsEvaluator(
        adata_pred=ad.concat([made, controls]),
        adata_real=real.copy(),
        control_pert="ctrl",
        pert_col="treatment",
        num_threads=1,
        outdir=str(folder),
    )
    found, means = run.compute(profile="vcc", write_csv=False)
    table = pd.DataFrame({name: found[name].to_list() for name in found.columns})
    return table.set_index("perturbation"), means


def test_the_same_objects_have_the_same_scores_in_cell_eval(tmp_path: Path) -> None:
    real, made = _many(0), _made(1, noise=0.3)
    mean = made.copy()
    mean.X[:] = real.X[(real.obs["treatment"] != "ctrl").to_numpy()].mean(axis=0)
    mean.X += 0.1 * np.random.default_rng(0).normal(size=mean.shape).astype(np.float32)
    mean.X = mean.X.clip(0)
    methods = {"mine": made, "mean": mean}
    options = {"groupby": None, "metrics": "cell_eval:vcc", "baselines": []}
    table = evaluate(real, methods, **options)
    theirs = {name: _in_cell_eval(real, one, tmp_path) for name, one in methods.items()}
    for name, (scores, _) in theirs.items():
        for metric in ("overlap_at_N", "discrimination_score_l1", "mae"):
            found = values(table, f"cell_eval:{metric}")[name].droplevel("group")
            np.testing.assert_allclose(found, scores.loc[found.index, metric], atol=1e-6)
    total = challenge_score(table, baseline="mean")
    expected = cell_eval.score_agg_metrics(theirs["mine"][1], theirs["mean"][1])
    expected = dict(zip(expected["metric"], expected["from_baseline"], strict=True))
    assert 0.2 < total.loc[("", "mine"), "score"] < 0.99
    for name, value in total.loc[("", "mine")].items():
        assert value == pytest.approx(expected[{"score": "avg_score"}.get(name, name)], abs=1e-6)
    # cell-eval takes the controls of the prediction, if they are others; we never do
    own = real[(real.obs["treatment"] == "ctrl").to_numpy()].copy()
    own.X[:, :20] += 3.0
    own.obs_names = own.obs_names + "-own"
    with pytest.warns(UserWarning, match="controls of its own"):
        again = evaluate(real, {"mine": ad.concat([made, own], uns_merge="same")}, **options)
    pd.testing.assert_frame_equal(again, table[table["method"] == "mine"].reset_index(drop=True))

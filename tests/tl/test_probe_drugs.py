"""tl.probe_drugs finds planted effects of lines, of drugs and of both, and nothing in noise."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cfm

N_LINES, N_DRUGS = 60, 24


def lines(interaction: float = 1.0, *, seed: int = 0, missing: float = 0.1) -> ad.AnnData:
    """Lines with effects of expression, of drug features, and of their product, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N_LINES, 4)) @ rng.normal(size=(4, 30))
    d = rng.normal(size=(N_DRUGS, 8))
    parts = [
        (x @ rng.normal(size=30))[:, None] + np.zeros(N_DRUGS),
        np.zeros((N_LINES, 1)) + 2 * (d @ rng.normal(size=8)),
        interaction * x @ rng.normal(size=(30, 8)) @ d.T,
    ]
    weights = (1, 2, interaction)
    y = sum(part / max(part.std(), 1e-9) * w for part, w in zip(parts, weights, strict=True))
    y = 5 + y + rng.normal(0, 0.5, size=(N_LINES, N_DRUGS))
    y[rng.random(y.shape) < missing] = np.nan
    names = [f"line{i:02d}" for i in range(N_LINES)]
    drugs = [f"drug{j:02d}" for j in range(N_DRUGS)]
    obs = pd.DataFrame({"tissue": [f"t{i % 12}" for i in range(N_LINES)]}, index=names)
    genes = pd.DataFrame(index=[f"G{i}" for i in range(30)])
    adata = ad.AnnData(x.astype(np.float32), obs=obs, var=genes)
    adata.obsm["ic50"] = pd.DataFrame(y, index=names, columns=drugs)
    adata.uns["features"] = pd.DataFrame(d, index=drugs)
    return adata


def scores(adata: ad.AnnData, features: pd.DataFrame | None = None, **given: Any) -> pd.Series:
    features = adata.uns["features"] if features is None else features
    cfm.tl.probe_drugs(adata, "ic50", features, **given)
    table = adata.uns["probe_drugs"]["results"]
    return table.set_index(["left_out", "representation", "head", "metric"])["score"].sort_index()


def test_planted_interaction_is_found_in_new_lines_and_new_drugs() -> None:
    found = scores(lines())
    for left_out in ("line", "drug", "both"):
        of = found[left_out]
        both = of["expression", "bilinear ridge"]
        additive = of["expression", "additive ridge"]
        assert both["pearson_within_drug"] > additive["pearson_within_drug"] + 0.1
        assert both["pearson_within_drug"] > 0.75
        means = [of["none", head]["rmse"] for head in ("drug mean", "line mean")]
        assert both["rmse"] < 0.6 * min(*means, of["none", "drug + line mean"]["rmse"])
    # the mean of a drug does not tell lines apart, that of a line does not tell drugs apart
    assert found["line", "none", "drug mean", "pearson_within_drug"] == 0
    assert found["drug", "none", "line mean", "pearson_within_line"] == 0
    assert found["line", "none", "drug mean", "pearson_within_line"] > 0.7
    assert found["drug", "none", "line mean", "pearson_within_drug"] > 0.5


def test_without_an_interaction_the_means_are_not_beaten_much() -> None:
    found = scores(lines(interaction=0.0))
    for left_out in ("line", "drug", "both"):
        additive = found[left_out, "expression", "additive ridge", "rmse"]
        assert found[left_out, "expression", "bilinear ridge", "rmse"] < 1.05 * additive


def test_features_of_other_lines_and_drugs_predict_nothing() -> None:
    adata = lines()
    rng = np.random.default_rng(1)
    adata.X = adata.X[rng.permutation(N_LINES)]
    adata.uns["features"].loc[:] = adata.uns["features"].to_numpy()[rng.permutation(N_DRUGS)]
    found = scores(adata, left_out="both").unstack("metric")
    assert found["pearson_within_drug"].abs().max() < 0.2
    assert found["pearson_within_line"].abs().max() < 0.6  # 24 drugs, whose means vary most
    assert found["rmse"].min() > 1.5


def test_rows_in_any_order_give_the_same_and_no_row_leaks() -> None:
    adata = lines()
    other = adata[::-1].copy()
    pd.testing.assert_series_equal(scores(adata), scores(other))
    # in a fold of lines, a line's own responses do not enter its prediction
    changed = lines()
    changed.obsm["ic50"].iloc[0] += 100
    scores(changed, left_out="line")
    first = [a.obsm["probe_drugs_line"].iloc[0] for a in (adata, changed)]
    pd.testing.assert_series_equal(*first)


def test_groups_of_lines_stay_together() -> None:
    adata = lines()
    adata.obsm["ic50"].loc[adata.obs["tissue"] == "t0"] += 100
    scores(adata, left_out="line", groups="tissue")
    shifted = (adata.obs["tissue"] == "t0").to_numpy()
    assert adata.obsm["probe_drugs_line"].to_numpy()[shifted].max() < 40


def test_scores_are_those_of_plain_formulas() -> None:
    adata = lines(missing=0.0)
    scores(adata, left_out="drug")
    predicted = adata.obsm["probe_drugs_drug"]
    truth = adata.obsm["ic50"]
    found = adata.uns["probe_drugs"]["results"].query("representation == 'expression'")
    found = found[found["head"] == "bilinear ridge"].set_index("metric")
    own = [np.corrcoef(truth[d], predicted[d])[0, 1] for d in truth]
    assert found.loc["pearson_within_drug", "score"] == pytest.approx(np.mean(own))
    rmse = np.sqrt(((truth - predicted) ** 2).to_numpy().mean())
    assert found.loc["rmse", "score"] == pytest.approx(rmse)
    assert (found["low"] <= found["score"]).all()
    assert (found["score"] <= found["high"]).all()
    assert found["n"].tolist() == [N_DRUGS, N_LINES, N_LINES]


def test_getter_reads_the_results() -> None:
    adata = lines()
    scores(adata, left_out="line")
    table = cfm.get.probe_scores(adata, key="probe_drugs")
    assert table["score"].tolist() == adata.uns["probe_drugs"]["results"]["score"].tolist()


def test_drugs_without_features_are_left_out() -> None:
    adata = lines()
    with pytest.warns(UserWarning, match="4 of 24 drugs have no features"):
        scores(adata, adata.uns["features"].iloc[4:], left_out="line")
    assert adata.obsm["probe_drugs_line"].shape == (N_LINES, N_DRUGS - 4)
    assert adata.uns["probe_drugs"]["params"]["n_drugs"] == N_DRUGS - 4


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "left_out='cell'; expected some of line, drug, both", {"left_out": "cell"}),
        (TypeError, r"obsm\['other'\] is a NoneType; expected a DataFrame", {"target": "other"}),
        (TypeError, "drug_features is a ndarray", {"drug_features": np.ones((3, 3))}),
        (ValueError, "3 drugs have features, too few for 5", {"drug_features": slice(3)}),
        (ValueError, "names a drug more than once", {"drug_features": [0, 0, 1, 2, 3, 4]}),
        (TypeError, "holds values that are no numbers", {"drug_features": "text"}),
    ],
)
def test_input_is_refused_in_one_sentence(error: Any, message: str, change: dict[str, Any]) -> None:
    adata = lines()
    features = adata.uns["features"]
    given = {"target": "ic50", "drug_features": features} | change
    if isinstance(given["drug_features"], slice | list):
        given["drug_features"] = features.iloc[given["drug_features"]]
    elif isinstance(given["drug_features"], str):
        given["drug_features"] = features.assign(note="x")
    before = set(adata.obsm) | set(adata.uns)
    with pytest.raises(error, match=message):
        cfm.tl.probe_drugs(adata, **given)
    assert set(adata.obsm) | set(adata.uns) == before


def test_a_head_of_bulk_lines_works_on_cells_whose_mean_is_aligned() -> None:
    """The recipe of the guide: what it finds, and the shift of a whole sample that it loses."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=50) / np.sqrt(50)
    bulk = rng.normal(size=(150, 50))
    cells = rng.normal(size=(200, 50))
    y, z = bulk @ weights, cells @ weights
    head = make_pipeline(StandardScaler(), Ridge(10.0)).fit(bulk, y + rng.normal(0, 0.3, 150))
    measured = 0.5 * cells + 3 + rng.normal(0, 0.3, cells.shape)  # platform: scale, shift, noise
    aligned = measured - measured.mean(axis=0) + bulk.mean(axis=0)
    assert np.corrcoef(head.predict(aligned), z)[0, 1] > 0.6
    assert np.abs(head.predict(aligned) - z).mean() < np.abs(head.predict(measured) - z).mean() / 2
    resistant = measured + weights / np.linalg.norm(weights)  # each cell shifts alike
    lost = resistant - resistant.mean(axis=0) + bulk.mean(axis=0)
    np.testing.assert_allclose(head.predict(lost), head.predict(aligned), atol=1e-8)

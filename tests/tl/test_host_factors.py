"""``cfm.tl.host_factors``: planted genes come first, with honest p-values, whatever the method."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

import cfm
from cfm.metrics import auroc
from cfm.models import CellPulse
from tests._same import assert_unchanged
from tests._toy import SIZES, toy_checkpoint

KEY = "host_factors"
COLUMNS = [
    "group",
    "explained",
    "gene",
    "score",
    "rank",
    "direction",
    "effect",
    "concordance",
    "call_effect",
    "p_value",
    "fdr",
    "n_profiles",
]
VIRUSES = ["virus_A", "virus_B", "virus_C", "virus_D"]
#: Explain one group alone.
A = {"virus_A": "response"}


@pytest.fixture(scope="module")
def model() -> CellPulse:
    return CellPulse.load(toy_checkpoint())


def answered(adata: ad.AnnData, model: CellPulse) -> ad.AnnData:
    """With answers of :func:`cfm.tl.predict_virus`, so that viruses are explained."""
    cfm.tl.predict_virus(adata, model, names="always", n_matches=0)
    return adata


def table(adata: ad.AnnData, key: str = KEY) -> pd.DataFrame:
    return adata.uns[key]["results"]


def of(adata: ad.AnnData, group: str) -> pd.DataFrame:
    found = table(adata)
    return found[found["group"] == group].set_index("gene")


@pytest.mark.parametrize("method", ["integrated_gradients", "reversal"])
def test_planted_genes_of_the_virus_come_first(
    model: CellPulse, contrasts: ad.AnnData, method: str
) -> None:
    truth = answered(contrasts, model).varm["truth"]
    cfm.tl.host_factors(
        contrasts, "virus", method, model=model, explain={v: v for v in VIRUSES}, n_permutations=20
    )
    for virus in VIRUSES:
        genes = of(contrasts, virus)
        own = truth.index[(truth[virus] != 0)]
        assert genes.index[:20].isin(own).mean() > 0.8, virus
        first = genes.iloc[:20]
        planted = np.sign(truth.loc[first.index, virus])
        moved = first["direction"].map({"up": 1, "down": -1, "unchanged": 0})
        assert (moved == planted).mean() > 0.8
        assert (first["call_effect"] > 0).mean() > 0.8
        assert genes.loc[own, "p_value"].median() < genes["p_value"].median()


def test_what_is_written(model: CellPulse, contrasts: ad.AnnData) -> None:
    before = answered(contrasts, model).copy()
    assert cfm.tl.host_factors(contrasts, "virus", model=model, n_permutations=3) is None
    found = table(contrasts)
    assert found.columns.tolist() == [
        *COLUMNS,
        "score_attention",
        "score_integrated_gradients",
        "score_reversal",
    ]
    groups = sorted(contrasts.obs["virus"].unique())
    assert found["group"].unique().tolist() == groups
    assert len(found) == len(groups) * contrasts.n_vars
    for group, genes in found.groupby("group"):
        assert genes["rank"].tolist() == list(range(1, len(genes) + 1))
        assert genes["score"].is_monotonic_decreasing
        rows = (contrasts.obs["virus"] == group).to_numpy()
        assert (genes["n_profiles"] == rows.sum()).all()
        effect = contrasts[rows].to_df().mean()
        np.testing.assert_allclose(effect[genes["gene"]], genes["effect"], atol=1e-5)
        assert genes["concordance"].between(0, 1).all()
        assert genes["p_value"].between(0, 1).all()
        assert (genes["fdr"] >= genes["p_value"] - 1e-12).all()
    scores = contrasts.varm[KEY]
    assert scores.columns.tolist() == groups
    first = found.iloc[0]
    assert scores.loc[first["gene"], first["group"]] == pytest.approx(first["score"], rel=1e-6)
    params = contrasts.uns[KEY]["params"]
    expected = {"groupby": "virus", "method": "consensus", "seed": 0, "vocabulary_share": 1.0}
    assert params.items() >= expected.items()
    targets = dict(zip(params["groups"], params["targets"], strict=True))
    explained = found.groupby("group")["explained"].unique().str.join("|")
    assert explained.to_dict() == targets
    assert targets == {v: v for v in VIRUSES} | {"IFN-beta": "response"}
    del contrasts.uns[KEY], contrasts.varm[KEY]
    assert_unchanged(contrasts, before)


def test_single_methods_score_as_in_the_consensus(model: CellPulse, contrasts: ad.AnnData) -> None:
    arguments = {"model": model, "explain": {"virus_B": "response"}, "n_permutations": 0}
    cfm.tl.host_factors(contrasts, "virus", **arguments)
    together = of(contrasts, "virus_B")
    assert together[["p_value", "fdr"]].isna().all(axis=None)
    ranks = []
    for method in ("attention", "integrated_gradients", "reversal"):
        cfm.tl.host_factors(contrasts, "virus", method, key_added=method, **arguments)
        single = table(contrasts, method).set_index("gene").loc[together.index]
        assert not [c for c in single if c.startswith("score_")]
        np.testing.assert_allclose(single["score"], together[f"score_{method}"], rtol=1e-6)
        np.testing.assert_allclose(single["call_effect"], together["call_effect"], rtol=1e-6)
        ranks.append(rankdata(-single["score"]))
    expected = -np.log10(np.array(ranks) / len(together)).mean(axis=0)
    np.testing.assert_allclose(together["score"], expected)


@pytest.mark.parametrize("null", ["labels", "effects", "directions"])
def test_p_values_do_not_reject_what_is_random(null: str, model: CellPulse) -> None:
    rng = np.random.default_rng(5)
    genes = model.vocabulary.genes
    noise = ad.AnnData(
        rng.normal(size=(24, len(genes))).astype(np.float32),
        obs=pd.DataFrame({"virus": ["x"] * 6 + ["y"] * 18}, index=[f"c{i}" for i in range(24)]),
        var=pd.DataFrame(index=genes.astype(str)),
    )
    cfm.tl.host_factors(
        noise,
        "virus",
        "reversal",
        model=model,
        explain={"x": "response"},
        null=null,
        n_permutations=40,
    )
    found = table(noise)
    # Only "effects" permutes genes apart; else what all genes share moves them together.
    assert (0.03 if null == "effects" else 0.0) < (found["p_value"] < 0.05).mean() < 0.09
    assert (found["fdr"] < 0.05).mean() < 0.01
    assert noise.uns[KEY]["params"]["nulls"] == [null]


def test_labels_find_what_only_this_group_does(model: CellPulse, contrasts: ad.AnnData) -> None:
    truth = answered(contrasts, model).varm["truth"]
    shared = truth.index[(truth[VIRUSES] != 0).all(axis=1)]
    own = truth.index[(truth["virus_A"] != 0) & (truth[VIRUSES[1:]] == 0).all(axis=1)]
    arguments = {"model": model, "explain": {"virus_A": "virus_A"}, "n_permutations": 40}
    cfm.tl.host_factors(contrasts, "virus", "reversal", null="labels", **arguments)
    genes = of(contrasts, "virus_A")
    assert (genes.loc[own, "fdr"] < 0.05).mean() > 0.5
    assert (genes.loc[own, "fdr"] < 0.05).mean() > (genes.loc[shared, "fdr"] < 0.05).mean()


def test_seeds_repeat_and_neither_names_nor_order_of_rows_matter(
    model: CellPulse, contrasts: ad.AnnData, rng: np.random.Generator
) -> None:
    arguments = {
        "model": model,
        "explain": {"virus_C": "response"},
        "n_permutations": 4,
        "copy": True,
    }
    for null in ("labels", "effects", "directions"):
        first = cfm.tl.host_factors(contrasts, "virus", "reversal", null=null, **arguments)
        turned = contrasts[rng.permutation(contrasts.n_obs)][:, ::-1].copy()
        turned.obs_names = [f"c{i}" for i in rng.permutation(turned.n_obs)]
        second = cfm.tl.host_factors(turned, "virus", "reversal", null=null, **arguments)
        pd.testing.assert_frame_equal(table(first), table(second), rtol=1e-5)
        other = cfm.tl.host_factors(contrasts, "virus", "reversal", null=null, seed=1, **arguments)
        assert (table(first)["p_value"] != table(other)["p_value"]).any()
        np.testing.assert_array_equal(table(first)["score"], table(other)["score"])
    assert KEY not in contrasts.uns


def test_one_profile_in_a_group_falls_back_to_effects(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    rows = contrasts.obs.groupby("virus", observed=True).head(1).index
    few = contrasts[rows].copy()
    cfm.tl.host_factors(few, "virus", "reversal", model=model, n_permutations=10)
    assert set(few.uns[KEY]["params"]["nulls"]) == {"effects"}
    assert table(few)["p_value"].between(0, 1).all()
    assert set(table(few)["n_profiles"]) == {1}


def test_missing_genes_have_no_row_and_missing_groups_no_profiles(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    rows = (contrasts.obs["virus"] == "virus_A").to_numpy()
    x = contrasts.X.copy()
    x[rows, 5] = np.nan
    x[np.flatnonzero(rows)[0], 6] = np.nan
    contrasts.X = x
    contrasts.obs["virus"] = contrasts.obs["virus"].astype(object)
    contrasts.obs.iloc[np.flatnonzero(~rows)[0], contrasts.obs.columns.get_loc("virus")] = None
    cfm.tl.host_factors(contrasts, "virus", "reversal", model=model, n_permutations=2)
    genes = of(contrasts, "virus_A")
    assert contrasts.var_names[5] not in genes.index
    assert contrasts.var_names[6] in genes.index
    assert table(contrasts).notna().all().all()
    assert "None" not in set(table(contrasts)["group"])


def test_nothing_moves_and_everything_is_tied(model: CellPulse, contrasts: ad.AnnData) -> None:
    still = contrasts[::3].copy()
    still.X = np.zeros_like(still.X)
    cfm.tl.host_factors(still, "virus", model=model, n_permutations=2)
    found = table(still)
    assert (found["p_value"] == 1).all()
    assert (found["direction"] == "unchanged").all()
    names = found.loc[found["group"] == "virus_A", "gene"].tolist()
    assert names == sorted(names)


def test_guided_finds_genes_that_respond_like_known_ones(
    model: CellPulse, contrasts: ad.AnnData, rng: np.random.Generator
) -> None:
    truth = contrasts.varm["truth"]
    planted = truth.index[(truth["virus_A"] > 0) & (truth["IFN-beta"] == 0)]
    known = rng.permutation(planted)[: len(planted) // 2]
    cfm.tl.host_factors(contrasts, "virus", "guided", model=model, explain=A, known=known)
    genes = of(contrasts, "virus_A")
    assert genes["known"].sum() == len(known)
    hidden = planted.difference(known)
    strangers = genes.index.difference(planted)
    assert (
        auroc(
            np.r_[np.ones(len(hidden)), np.zeros(len(strangers))] > 0,
            np.r_[genes.loc[hidden, "score"], genes.loc[strangers, "score"]],
        )
        > 0.7
    )
    assert (genes.loc[hidden, "p_value"] < 0.05).mean() > 0.3
    assert contrasts.uns[KEY]["params"]["nulls"] == ["known"]
    # A rule that has seen a gene must not judge it: known genes gain nothing by being known.
    shuffled = dict(virus_A=rng.permutation(contrasts.var_names)[:60].tolist())
    cfm.tl.host_factors(contrasts, "virus", "guided", model=model, explain=A, known=shuffled)
    found = of(contrasts, "virus_A")
    assert 0.3 < auroc(found["known"].to_numpy(), found["score"].to_numpy()) < 0.62
    assert (found["fdr"] < 0.05).mean() < 0.02


def test_groups_with_a_slash_survive_a_file(
    model: CellPulse, contrasts: ad.AnnData, tmp_path
) -> None:
    contrasts.obs["virus"] = contrasts.obs["virus"].astype(str).replace({"virus_A": "HSV-1/2"})
    cfm.tl.host_factors(contrasts, "virus", "reversal", model=model, n_permutations=0)
    contrasts.write_zarr(tmp_path / "x")
    back = ad.read_zarr(tmp_path / "x")
    pd.testing.assert_frame_equal(table(back), table(contrasts))
    pd.testing.assert_frame_equal(back.varm[KEY], contrasts.varm[KEY])


def test_ensembl_ids_and_views(contrasts: ad.AnnData) -> None:
    real = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    view = real[:2]
    copy = cfm.tl.host_factors(view, method="reversal", n_permutations=0, copy=True)
    assert view.is_view
    params = copy.uns[KEY]["params"]
    assert params["model"] == "cellpulse-virus"
    assert params["groupby"] == "virus"
    assert params["targets"] == ["response"]


def test_what_is_explained_can_be_chosen(model: CellPulse, contrasts: ad.AnnData) -> None:
    arguments = {"groupby": "virus", "model": model, "method": "reversal", "n_permutations": 0}
    scores = {}
    for explain in ("response", "virus_A", "virus_B"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cfm.tl.host_factors(contrasts, explain={"virus_A": explain}, **arguments)
        found = table(contrasts).set_index("gene")
        assert set(found["explained"]) == {explain}
        scores[explain] = found["score"].sort_index()
    assert np.abs(scores["response"] - scores["virus_A"]).max() > 0.01
    assert np.abs(scores["virus_B"] - scores["virus_A"]).max() > 0.01


def test_a_group_that_was_called_otherwise_is_warned_of(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    arguments = {"groupby": "virus", "model": model, "method": "reversal", "n_permutations": 0}
    answered(contrasts, model)
    groups = contrasts.obs["virus"].astype(str)
    answers = groups.replace({"virus_A": "virus_B"})
    contrasts.obs["predicted_virus"] = pd.Categorical(answers)
    with pytest.warns(UserWarning, match=r"virus of the group in 'virus_A' \(virus_B\):"):
        cfm.tl.host_factors(contrasts, **arguments)
    assert set(of(contrasts, "virus_A")["explained"]) == {"virus_B"}
    assert set(of(contrasts, "virus_C")["explained"]) == {"virus_C"}
    contrasts.obs["predicted_virus"] = pd.Categorical(["unresolved"] * contrasts.n_obs)
    with pytest.warns(UserWarning, match="'virus_D'"):
        cfm.tl.host_factors(contrasts, **arguments)
    assert set(table(contrasts)["explained"]) == {"response"}


def test_bad_input(model: CellPulse, contrasts: ad.AnnData) -> None:
    before = contrasts.copy()
    cases = [
        (ValueError, "groupby= is missing", {"groupby": None}),
        (ValueError, "explain='Ebola'; expected 'response' or a virus", {"explain": "Ebola"}),
        (ValueError, "explain='Ebola'; expected", {"explain": {"virus_A": "Ebola"}}),
        (KeyError, r"has no \['Ebola'\]", {"explain": {"Ebola": "response"}}),
        (ValueError, "No group .* is chosen", {"explain": {}}),
        (ValueError, "expected 0, or 2 or more", {"n_permutations": 1}),
        (ValueError, "needs known=", {"method": "guided"}),
        (ValueError, "goes with method='guided'", {"known": ["IFIT1"]}),
        (TypeError, "expected a list of gene", {"method": "guided", "known": "IFIT1"}),
        (ValueError, "Found 1 of 2 known", {"method": "guided", "known": ["IFIT1", "nothing"]}),
        (KeyError, "no host factors for group", {"method": "guided", "known": {"x": ["IFIT1"]}}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            cfm.tl.host_factors(contrasts, **({"groupby": "virus", "model": model} | arguments))
    alone = contrasts[contrasts.obs["virus"] == "virus_A"].copy()
    with pytest.raises(ValueError, match="cannot permute anything"):
        cfm.tl.host_factors(alone, "virus", model=model, null="labels")
    contrasts.obs["empty"] = np.nan
    with pytest.raises(ValueError, match="missing in all"):
        cfm.tl.host_factors(contrasts, "empty", model=model)
    del contrasts.obs["empty"]
    assert_unchanged(contrasts, before)


def test_a_model_without_classifier_is_refused(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts)
    with pytest.raises(ValueError, match="train_classifier"):
        cfm.tl.host_factors(contrasts, model=CellPulse(contrasts, **SIZES))

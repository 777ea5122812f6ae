from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import CellPulse
from tests._same import assert_same
from tests.tl._drugs import DOWN, UP, host_factors, profiles, results, signatures, targets

#: Most libraries here are small.
pytestmark = pytest.mark.filterwarnings("ignore:p_value and fdr are NaN:UserWarning")

COLUMNS = {
    "group": object, "compound": object, "rank": "int64", "score": "float64",
    "p_value": "float64", "fdr": "float64", "cosine_reversal": "float64", "reversal": "float64",
    "embedding_reversal": "float64", "target_score": "float64", "p_target": "float64",
    "n_signatures": "int64", "n_targets": "int64", "reversal_genes": object, "target_genes": object,
}  # fmt: skip


def screened(adata: ad.AnnData | None = None, **arguments) -> ad.AnnData:
    adata = profiles() if adata is None else adata
    given = {"signatures": signatures(), "model": None, "n_permutations": 200} | arguments
    cfm.tl.screen_drugs(adata, **given)
    return adata


def test_the_planted_compound_comes_first_and_its_mimic_last() -> None:
    adata = screened(signatures=signatures(120))
    found = results(adata)
    assert found.index[0] == "Reverser"
    assert found.index[-1] == "mimic"
    assert found.loc["Reverser", "reversal"] > 0.8
    assert found.loc["mimic", "reversal"] < -0.8
    assert found.loc["Reverser", "cosine_reversal"] > 0.5
    assert found.loc["mimic", "cosine_reversal"] < -0.5
    assert found.loc["Reverser", ["p_value", "fdr"]].max() < 0.05
    assert found.loc["mimic", "p_value"] > 0.9
    assert found["rank"].tolist() == list(range(1, 123))
    assert found["score"].is_monotonic_decreasing
    assert results(adata, "B").index[0] != "Reverser" or results(adata, "B")["fdr"].iloc[0] > 0.05


def test_reversed_genes_are_of_the_signature_and_move_the_other_way() -> None:
    found = results(screened())
    genes = found.loc["Reverser", "reversal_genes"].split("|")
    assert set(genes) <= set(UP[:20] + DOWN[:20])
    assert set(genes) & set(UP[:20]) and set(genes) & set(DOWN[:20])
    assert len(genes) == 25
    mean = profiles()[:3].to_df().mean()
    assert mean[genes].abs().is_monotonic_decreasing
    assert found.loc["mimic", "reversal_genes"] == ""


def test_table_and_record() -> None:
    adata = screened()
    table = adata.uns["drug_screen"]["results"]
    assert {c: table[c].dtype for c in table} == {c: np.dtype(t) for c, t in COLUMNS.items()}
    assert table.index.tolist() == [str(i) for i in range(len(table))]
    assert table["group"].drop_duplicates().tolist() == ["A", "B"]
    assert (table.groupby("group")["rank"].diff().dropna() == 1).all()
    missing = table.columns[table.isna().all()].tolist()
    assert missing == ["p_value", "fdr", "embedding_reversal", "target_score", "p_target"]
    assert (table["n_targets"] == 0).all() and (table["n_signatures"] == 1).all()
    params = adata.uns["drug_screen"]["params"]
    assert params["groupby"] == "virus"
    assert params["groups"] == ["A", "B"]
    assert params["signatures"] == 22
    assert params["readings"] == ["cosine"] and params["library_mean_removed"] is False
    assert params["seed"] == 0
    assert "model" not in params


def test_the_model_reads_the_planted_direction(model: CellPulse, contrasts: ad.AnnData) -> None:
    truth = contrasts.varm["truth"]["virus_A"]
    up, down = (truth.sort_values().index[s].tolist() for s in (slice(-40, None), slice(0, 30)))
    rng = np.random.default_rng(0)
    lists = {"reverser": (down, up), "mimic": (up, down)}
    for i in range(10):
        drawn = rng.permutation(contrasts.var_names)[:70].tolist()
        lists[f"random{i}"] = (drawn[:40], drawn[40:])
    rows = [
        (name, gene, sign)
        for name, sides in lists.items()
        for genes, sign in zip(sides, (1, -1), strict=True)
        for gene in genes
    ]
    table = pd.DataFrame(rows, columns=["compound", "gene", "direction"])
    arguments = {"n_permutations": 100, "readings": "connectivity"}
    joined = arguments | {"readings": ("connectivity", "model")}
    contrasts = contrasts[contrasts.obs["virus"] == "virus_A"].copy()
    cfm.tl.screen_drugs(contrasts, table, model=model, **joined)
    found = results(contrasts, "virus_A")
    reading = found["embedding_reversal"]
    assert found.index[0] == "reverser" and found.index[-1] == "mimic"
    assert reading.idxmax() == "reverser" and reading.idxmin() == "mimic"
    assert reading.between(-1, 1).all()
    # A signature turned upside down has the opposite reading.
    assert reading["reverser"] == pytest.approx(-reading["mimic"], abs=1e-4)
    params = contrasts.uns["drug_screen"]["params"]
    assert params["vocabulary_share"] == 1.0 and "sha256" in params
    cfm.tl.screen_drugs(contrasts, table, model=None, key_added="plain", **arguments)
    alone = results(contrasts, "virus_A", "plain")
    np.testing.assert_allclose(alone["reversal"][found.index], found["reversal"])
    assert (alone["score"][found.index] != found["score"]).all()


def test_target_evidence() -> None:
    found = results(screened(signatures=None, targets=targets(), host_factors=host_factors()))
    assert found.index[0] == "blocker"
    assert set(found.index) == {"blocker", "REVERSER", "dud", "other"}  # "unscored" has no score
    assert found.loc["blocker", "target_genes"] == "GENE100|GENE101|GENE102"
    assert found.loc["blocker", "target_score"] > 0.98
    assert found.loc["blocker", "p_value"] < 0.05
    assert found.loc["dud", "target_genes"] == ""
    assert found["n_targets"].to_dict() == {"blocker": 3, "REVERSER": 2, "dud": 2, "other": 27}
    assert found["reversal"].isna().all() and (found["n_signatures"] == 0).all()


def test_both_kinds_of_evidence_join_whatever_the_case_of_the_name() -> None:
    adata = profiles()
    adata.uns["host_factors"] = {"params": {}, "results": host_factors()}
    found = results(screened(adata, targets=targets()))
    both = found.loc["Reverser"]
    assert "REVERSER" not in found.index
    assert both["n_targets"] == 2 and both["n_signatures"] == 1
    assert np.isfinite(both[["reversal", "target_score"]].astype(float)).all()
    alone = results(screened())
    by_target = results(screened(signatures=None, targets=targets(), host_factors=host_factors()))
    expected = (alone.loc["Reverser", "score"] + by_target.loc["REVERSER", "score"]) / np.sqrt(2)
    assert both["score"] == pytest.approx(expected)
    assert np.isnan(found.loc["random0", "target_score"]) and found.loc["random0", "n_targets"] == 0
    assert np.isnan(found.loc["blocker", "reversal"])
    assert adata.uns["drug_screen"]["params"]["host_factors"] == "host_factors"
    adata.uns["mine"] = adata.uns.pop("host_factors")
    assert_same(results(screened(adata, targets=targets(), host_factors="mine")), found)


def test_host_factors_of_any_form_and_of_some_groups() -> None:
    one = host_factors(("A",))
    series = one.set_index("gene")["score"]
    arguments = {"signatures": None, "targets": targets()}
    frame = results(screened(host_factors=one[["gene", "score"]], **arguments), "B")
    assert_same(results(screened(host_factors=series, **arguments), "B"), frame)
    with pytest.warns(UserWarning, match=r"no host factors of \['B'\]"):
        adata = screened(host_factors=one, targets=targets())
    assert results(adata, "B")["target_score"].isna().all()
    assert results(adata, "A")["target_score"].notna().any()


def test_replicate_signatures_of_a_compound_are_summarised() -> None:
    table = signatures(5).assign(signature="one")
    weak = table[table["compound"] == "random0"].assign(compound="Reverser", signature="two")
    third = table[table["compound"] == "Reverser"].assign(signature="three")
    found = results(screened(signatures=pd.concat([table, weak, third])))
    assert found.loc["Reverser", "n_signatures"] == 3
    assert 0.3 < found.loc["Reverser", "reversal"] <= 1
    alien = pd.DataFrame({"compound": "Reverser", "gene": ["X1", "X2"], "signature": "four"})
    alien = pd.concat([table, alien.assign(direction="up")])
    assert results(screened(signatures=alien)).loc["Reverser", "n_signatures"] == 1
    same = table[table["compound"] == "Reverser"]
    many = pd.concat([table, *(same.assign(signature=f"again{i}") for i in range(5))])
    again = results(screened(signatures=many))
    once = results(screened(signatures=table))
    # The same signature six times is no more evidence than once.
    columns = ["cosine_reversal", "reversal", "score"]
    np.testing.assert_allclose(
        again.loc["Reverser", columns].astype(float), once.loc["Reverser", columns].astype(float)
    )


def test_results_repeat_and_do_not_depend_on_any_order(rng: np.random.Generator) -> None:
    arguments = {"targets": targets(), "host_factors": host_factors()}
    arguments["signatures"] = signatures(100)
    expected = screened(**arguments).uns["drug_screen"]["results"]
    assert expected["p_value"].notna().all()
    assert_same(screened(**arguments).uns["drug_screen"]["results"], expected)
    moved = profiles()[rng.permutation(4), rng.permutation(400)].copy()
    moved.obs_names = [f"z{i}" for i in range(4)]
    shuffled = {
        "signatures": signatures(100).sample(frac=1, random_state=1),
        "targets": targets().sample(frac=1, random_state=1),
        "host_factors": host_factors().sample(frac=1, random_state=1),
    }
    again = screened(moved, **shuffled).uns["drug_screen"]["results"]
    pd.testing.assert_frame_equal(again, expected, check_exact=False, rtol=1e-6)
    alone = screened(profiles()[3:].copy(), **arguments).uns["drug_screen"]["results"]
    rest = expected[expected["group"] == "B"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), rest)
    other = screened(seed=1, **arguments).uns["drug_screen"]["results"]
    assert (other["p_value"] != expected["p_value"]).any()


def test_bundled_tables_and_model_on_real_counts() -> None:
    counts = cfm.datasets.blanco_melo()
    made = cfm.pp.contrasts(counts, "virus", "none", by="series")
    made = made[made.obs["virus"] == "SARS-CoV-2"].copy()
    factors = pd.Series(np.nanmean(np.abs(made.X), axis=0), index=made.var_names)
    few = cfm.datasets.cmap_signatures()
    few = few[few["compound"].isin(few["compound"].unique()[::10])]
    cfm.tl.screen_drugs(
        made, few, cfm.datasets.drug_targets(), model="cellpulse-mini", host_factors=factors,
        n_permutations=50,
    )  # fmt: skip
    table = made.uns["drug_screen"]["results"]
    params = made.uns["drug_screen"]["params"]
    assert params["model"] == "cellpulse-mini" and len(params["sha256"]) == 64
    assert params["signature_genes_share"] > 0.8
    assert table["reversal"].notna().sum() == few["compound"].nunique()
    assert table["embedding_reversal"].notna().sum() == few["compound"].nunique()
    assert table["p_value"].between(0, 1).all() and table["fdr"].between(0, 1).all()

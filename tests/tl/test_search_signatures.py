from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

import cfm
from cfm.data._genes import _tables
from tests._same import assert_unchanged

GENES = sorted(set(_tables().by_upper.values()))[:600]
pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")


def library(n: int = 60, seed: int = 0) -> ad.AnnData:
    """Contrasts of studies of two, with modules of genes that move together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 40)) @ np.random.default_rng(99).standard_normal((40, 600))
    x += rng.standard_normal(x.shape)
    obs = pd.DataFrame(
        {
            "study": pd.Categorical([f"study {i // 2}" for i in range(n)]),
            "tissue": ["lung", None] * (n // 2),
            "time_h": np.where(np.arange(n) % 3, 24.0, np.nan),
            "rank": 7,
        },
        index=[f"public {i}" for i in range(n)],
    )
    return ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def queries(of: ad.AnnData | None = None) -> ad.AnnData:
    """Four contrasts: three that are like numbers 3, 20 and 41, and one like none."""
    of = library() if of is None else of
    rng = np.random.default_rng(5)
    x = np.vstack([of.X[[3, 20, 41]], 4 * rng.standard_normal((1, 600))])
    x = (x + 2 * rng.standard_normal(x.shape)).astype(np.float32)
    obs = pd.DataFrame({"mine": ["study 1", "b", "c", "d"]}, index=list("wxyz"))
    return ad.AnnData(x, obs=obs, var=of.var[[]].copy())


def search(adata=None, of=None, **arguments) -> pd.DataFrame:
    adata = queries() if adata is None else adata
    cfm.tl.search_signatures(adata, library() if of is None else of, **arguments)
    return adata.uns["signature_search"]["results"]


def first(table: pd.DataFrame) -> dict[str, str]:
    return table[table["rank"] == 1].set_index("query")["match"].to_dict()


@pytest.mark.parametrize(
    "method", ["auto", "cosine", "centered", "leading", "kernel", "spearman", "connectivity"]
)
def test_planted_matches_are_found(method):
    table = search(method=method)
    best = table[table["rank"] == 1].set_index("query")
    assert best["match"].to_dict() | {"z": ""} == {
        "w": "public 3", "x": "public 20", "y": "public 41", "z": ""
    }  # fmt: skip
    if method != "connectivity":
        assert (best["fdr"][:3] < 0.05).all()
        assert best.loc["z", "fdr"] > 0.05


def test_the_table_is_tidy():
    table = search(n=None)
    names = ["query", "match", "rank", "similarity", "p_value", "fdr", "duplicate",
             "study", "tissue", "time_h", "library_rank", "evidence"]  # fmt: skip
    assert list(table) == names
    assert len(table) == 4 * 60
    assert table["rank"].tolist() == list(range(1, 61)) * 4
    assert table.groupby("query", sort=False)["similarity"].is_monotonic_decreasing.all()
    assert table["p_value"].between(0, 1).all()
    assert (table["fdr"] >= table["p_value"] - 1e-12).all()
    assert set(table["tissue"]) == {"lung", ""}
    assert table["time_h"].isna().any()
    assert not table["duplicate"].any()


def test_evidence_genes_are_those_that_make_the_match():
    of, adata = library(), queries()
    adata.X[0, :5] = of.X[3, :5] = [40, -40, 30, -30, 20]
    adata.X[0, 5] = 40
    of.X[3, 5] = -40  # they disagree on this one
    table = search(adata, of, n_genes=5)
    genes = table["evidence"].iloc[0].split("|")
    assert set(genes) == set(GENES[:5])
    proof = adata.uns["signature_search"]["evidence"]
    proof = proof[(proof["query"] == "w") & (proof["match"] == "public 3")]
    assert proof["gene"].tolist() == genes
    assert proof["query_effect"].to_numpy() == pytest.approx(
        [adata[["w"], gene].X.item() for gene in genes]
    )
    assert (proof["query_effect"] * proof["match_effect"] > 0).all()


def test_opposite_contrasts():
    adata = queries()
    adata.X = -adata.X
    table = search(adata, direction="opposite")
    best = table[table["rank"] == 1]
    assert first(table)["x"] == "public 20"
    assert (best["similarity"] < -0.3).iloc[:3].all()
    proof = adata.uns["signature_search"]["evidence"]
    assert (proof["query_effect"] * proof["match_effect"] < 0).all()


def test_studies_are_left_out():
    assert "study 1" not in set(search(n=None, exclude_studies=["study 1"])["study"])
    table = search(n=None, study_key="mine")
    own = table[table["study"] == "study 1"]
    assert set(own["query"]) == {"x", "y", "z"}
    with pytest.raises(KeyError, match="no studies of the library"):
        search(exclude_studies=["nothing"])
    with pytest.raises(KeyError, match="study_key='nothing' is no column"):
        search(study_key="nothing")
    of = library()
    del of.obs["study"]
    with pytest.raises(KeyError, match="no column 'study'"):
        search(of=of, exclude_studies=["study 1"])
    assert first(search(of=of))["w"] == "public 3"  # each contrast is a study of its own


def test_a_contrast_that_is_in_the_library_is_marked():
    adata = queries()
    adata.X[0] = 3 * library().X[3]
    table = search(adata)
    assert table["duplicate"].tolist() == [True] + [False] * 39


def test_results_depend_neither_on_other_queries_nor_on_order():
    of, adata = library(), queries()
    adata.X[1, 100:500] = np.nan
    of.X[7, :300] = np.nan
    whole = search(adata.copy(), of, n=None)
    order = np.random.default_rng(0).permutation(of.n_obs)
    for rows in ([0, 1], [1], [3, 1, 0]):
        part = search(adata[rows].copy(), of[order].copy(), n=None)
        for name in adata.obs_names[rows]:
            a, b = (t[t["query"] == name].reset_index(drop=True) for t in (whole, part))
            pd.testing.assert_frame_equal(a, b, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_p_values_are_uniform_where_nothing_is_alike(together):
    rng = np.random.default_rng(8)
    of, adata = library(120), library(60, seed=4)
    if not together:
        of.X, adata.X = (rng.standard_normal(a.shape).astype(np.float32) for a in (of, adata))
    adata.obs_names = [f"q{i}" for i in range(60)]
    p = search(adata, of, n=None, n_genes=1)["p_value"].to_numpy()
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.015)
    assert kstest(p[::7], "uniform").statistic < 0.06


def test_p_values_of_lists_are_uniform():
    of, some = library(120), library(60, seed=4)
    rows = []
    for i in range(60):
        order = np.argsort(some.X[i])
        rows += [(f"q{i}", GENES[g], s) for s, gs in ((1, order[-50:]), (-1, order[:50]))
                 for g in gs]  # fmt: skip
    lists = pd.DataFrame(rows, columns=["compound", "gene", "direction"])
    made = cfm.tl.search_signatures(lists, of, n=None, n_genes=1)
    p = made.uns["signature_search"]["results"]["p_value"].to_numpy()
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.015)
    assert kstest(p[::7], "uniform").statistic < 0.08


def test_lists_as_queries_and_as_library(tmp_path):
    of = library()
    rows = []
    for name, i in (("like 20", 20), ("like 41", 41)):
        order = np.argsort(of.X[i])
        rows += [(name, GENES[g], 1) for g in order[-60:]]
        rows += [(name, GENES[g], -1) for g in order[:60]]
    lists = pd.DataFrame(rows, columns=["compound", "gene", "direction"])
    made = cfm.tl.search_signatures(lists, of)
    found = first(made.uns["signature_search"]["results"])
    assert found == {"like 20": "public 20", "like 41": "public 41"}
    assert made.obs["compound"].tolist() == ["like 20", "like 41"]
    assert set(np.unique(made.X.toarray())) == {-1, 0, 1}
    lines = [
        "\t".join([f"{name}_{side}", "", *part["gene"]])
        for (name, sign), part in lists.groupby(["compound", "direction"])
        for side in ["UP" if sign == 1 else "DN"]
    ]
    path = tmp_path / "lists.gmt"
    path.write_text("\n".join(lines))
    again = cfm.tl.search_signatures(str(path), of)
    assert first(again.uns["signature_search"]["results"]) == found
    assert first(search(of=lists))["x"] == "like 20"


def test_names_of_genes():
    table = search()
    of, adata = library(), queries()
    ids = {symbol: f"ENSG{number:011d}" for number, symbol in _tables().ensembl.items()}
    adata.var_names = [ids.get(name, name) for name in adata.var_names]
    assert adata.var_names.str.startswith("ENSG").mean() > 0.5
    pd.testing.assert_frame_equal(search(adata, of), table)
    adata.var_names = [name.capitalize() for name in GENES]
    with pytest.raises(ValueError, match=r"mouse symbols .* cfm\.pp\.map_genes"):
        search(adata)
    adata.var_names = [f"ENSMMUG{i:011d}" for i in range(600)]
    with pytest.raises(ValueError, match="Ensembl ids of macaque"):
        search(adata)
    adata.var_names = [f"nothing{i}" for i in range(600)]
    with pytest.raises(ValueError, match="Found 0 of the library's 600 genes"):
        search(adata)
    few = queries()[:, :20].copy()
    with pytest.raises(ValueError, match="Found 20 of the library's 600 genes"):
        search(few)


def test_what_is_refused_leaves_the_data_alone():
    adata = queries()
    before = adata.copy()
    twice = library()
    twice.obs_names = ["a"] * twice.n_obs
    infinite = library()
    infinite.X[0, 0] = np.inf
    for of, arguments, error, words in (
        (twice, {}, ValueError, "not unique in library="),
        (infinite, {}, ValueError, "infinite"),
        (library()[:0], {}, ValueError, "is empty"),
        (3, {}, TypeError, "library= is a int"),
    ):
        with pytest.raises(error, match=words):
            cfm.tl.search_signatures(adata, of, **arguments)
        assert_unchanged(adata, before)
    adata.X = np.abs(adata.X)
    with pytest.raises(ValueError, match="looks like expression"):
        search(adata)
    with pytest.raises(TypeError, match="expected an AnnData"):
        cfm.tl.search_signatures(3, library())


@pytest.mark.filterwarnings("default:The library has:UserWarning")
def test_one_contrast_is_a_library_with_a_warning():
    with pytest.warns(UserWarning, match="p-values are too small where genes move together"):
        table = search(of=library()[[3]].copy())
    assert table["match"].tolist() == ["public 3"] * 4
    assert table["p_value"].iloc[0] < 1e-3 < table["p_value"].iloc[3]


def test_a_query_without_an_effect_has_no_match():
    adata = queries()
    adata.X[1] = 0
    with pytest.warns(UserWarning, match=r"1 of 4 contrasts move no gene .*'x'"):
        table = search(adata)
    assert set(table["query"]) == {"w", "y", "z"}


def test_bundled_library_finds_interferon():
    contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    rsv = contrasts[contrasts.obs["virus"] == "RSV"].copy()
    cfm.tl.search_signatures(rsv)
    table = rsv.uns["signature_search"]["results"]
    assert "GSE147507" not in set(table["study"])
    assert set(table["response"][:5]) <= {"interferon I/III", "viral"}
    assert (table["fdr"][:5] < 0.05).all()
    assert {"MX1", "IFIT1"} & set(table["evidence"].iloc[0].split("|"))

"""``cfm.tl.knowledge_graph``: what is planted comes back, and what is written holds together."""

from __future__ import annotations

import sys
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import fisher_exact
from sklearn.metrics import average_precision_score

import cfm
from cfm.tl._knowledge_graph._attention import support_test
from tests._codes import NearestCode, typed_cells
from tests._graphs import PAIRS, PlantedAttention, coded_cells, limits
from tests._same import assert_unchanged

RELATED = [("G21", "G22"), ("G30", "G31")]


def run(adata: ad.AnnData, model: Any = None, **arguments: Any) -> pd.DataFrame:
    known = {"ligand_receptor": PAIRS} | arguments.pop("knowledge", {})
    cfm.tl.knowledge_graph(adata, model, knowledge=known, **arguments)
    return adata.uns[arguments.get("key_added", "knowledge_graph")]["edges"]


def of_kind(edges: pd.DataFrame, kind: str) -> pd.DataFrame:
    return edges[edges["kind"] == kind]


def genes_of(edges: pd.DataFrame, code: str) -> set[str]:
    own = of_kind(edges, "importance")
    return set(own.loc[own["source"] == f"code:{code}", "target"].str.removeprefix("gene:"))


@pytest.fixture(scope="module")
def toy() -> ad.AnnData:
    cells = cfm.datasets.toy_communication(3)
    with limits(N_GENES=400, N_LINKS=400, MAX_FDR=1.0, MIN_SHARE=0.0):
        cfm.tl.knowledge_graph(cells, None, codes="cell_type")
    return cells


def planted_links(links: pd.DataFrame, cells: ad.AnnData) -> np.ndarray:
    truth = cells.uns["truth"]["links"]
    ends = ["code:" + truth["sender"], "code:" + truth["receiver"]]
    wanted = set(zip(*ends, truth["ligand"], truth["receptor"], strict=True))
    found = links[["source", "target", "ligand", "receptor"]].itertuples(index=False, name=None)
    return np.array([row in wanted for row in found])


def test_planted_links_rank_first(toy: ad.AnnData) -> None:
    links = of_kind(toy.uns["knowledge_graph"]["edges"], "communication")
    is_link = planted_links(links, toy)
    assert is_link.sum() == len(toy.uns["truth"]["links"])
    assert is_link.mean() < 0.1
    assert average_precision_score(is_link, links["weight"]) > 0.85
    assert (links.loc[is_link, "fdr"] < 0.05).mean() > 0.9


def test_planted_markers_rank_first(toy: ad.AnnData) -> None:
    genes = of_kind(toy.uns["knowledge_graph"]["edges"], "importance")
    home = toy.var["marker_of"]
    for cell_type in toy.obs["cell_type"].cat.categories:
        own = genes[genes["source"] == f"code:{cell_type}"]
        weight = own.set_index(own["target"].str.removeprefix("gene:"))["weight"]
        weight = weight.reindex(toy.var_names).fillna(0.0)
        assert average_precision_score(home == cell_type, weight) > 0.8


def test_links_and_complexes_by_hand() -> None:
    cells = coded_cells()
    links = of_kind(run(cells), "communication")
    strong = links[links["weight"] > 0.5]
    assert set(
        zip(strong["source"], strong["target"], strong["ligand"], strong["receptor"], strict=True)
    ) == {
        ("code:0", "code:1", "L0", "R0"),
        ("code:0", "code:1", "L1", "RA_RB"),
    }
    assert not links["ligand"].isin(["L3", "nothing"]).any()
    assert (strong["p_value"] == 1 / 1001).all()
    log = np.log1p(cells.X.toarray() / cells.X.sum(axis=1).A1[:, None] * 1e4)
    mean = (
        pd.DataFrame(log, columns=cells.var_names).groupby(cells.obs["cell_code"].to_numpy()).mean()
    )
    row = strong[strong["ligand"] == "L1"].iloc[0]
    assert row["ligand_mean"] == pytest.approx(mean.loc["0", "L1"])
    assert row["receptor_mean"] == pytest.approx(mean.loc["1", ["RA", "RB"]].min())
    assert row["score"] == pytest.approx(np.sqrt(row["ligand_mean"] * row["receptor_mean"]))
    average = log.mean(axis=0)
    place = [cells.var_names.get_loc(g) for g in ("L1", "RA", "RB")]
    usual = np.sqrt(average[place[0]] * average[place[1:]].min())
    assert row["weight"] == pytest.approx(row["score"] - usual)
    # one gene of the complex missing: no receptor
    cells.X = sparse.csr_matrix(cells.X.toarray() * (cells.var_names != "RB"))
    assert "L1" not in set(of_kind(run(cells), "communication")["ligand"])


def test_importance_by_hand() -> None:
    cells = coded_cells()
    edges = run(cells)
    assert genes_of(edges, "0") < {f"G{i:02d}" for i in range(10)} | {"L0", "L1"}
    assert genes_of(edges, "0") > {"L0", "L1"}
    assert len(genes_of(edges, "0")) == 10
    row = of_kind(edges, "importance").set_index(["source", "target"]).loc[("code:1", "gene:R0")]
    cpm = cells.X.toarray() / cells.X.sum(axis=1).A1[:, None] * 1e4
    gene = cpm[:, cells.var_names.get_loc("R0")]
    own = (cells.obs["cell_code"] == "1").to_numpy()
    assert row["log2_fold_change"] == pytest.approx(
        np.log2((gene[own].mean() + 1) / (gene[~own].mean() + 1))
    )
    assert row["share"] == pytest.approx((gene[own] > 0).mean())
    assert row["weight"] == row["log2_fold_change"]
    assert np.isnan(row["attention"])
    assert not any(gene in genes_of(edges, "10") for gene in ("L0", "R0", "G00", "G10"))


def test_attention_of_a_model_that_is_not_ours() -> None:
    cells = coded_cells()
    # R3 is in one code only, and the model looks at it; G10 it looks at in all codes alike.
    model = PlantedAttention(["R3", "G10"], RELATED)
    with limits(N_RELATIONS=2, N_CELLS_PER_CODE=15):
        edges = run(cells, model)
    assert model.n_read == 45
    own = of_kind(edges, "importance").set_index(["source", "target"])
    assert own.loc[("code:1", "gene:R3"), "attention"] > 5
    assert own.loc[("code:1", "gene:R3"), "attention_lift"] > 2
    assert own.loc[("code:1", "gene:G10"), "attention"] > 5
    assert own.loc[("code:1", "gene:G10"), "attention_lift"] < 0.5
    related = of_kind(edges, "relation")
    assert set(zip(related["source"], related["target"], strict=True)) == {
        (f"gene:{a}", f"gene:{b}") for a, b in RELATED
    }
    assert set(related["code"]) == {"code:0", "code:1", "code:10"}
    assert (related["attention"] == 1 + related["weight"]).all()
    params = cells.uns["knowledge_graph"]["params"]
    assert params["model"] == "PlantedAttention"
    assert params["n_cells_read"] == 45


@limits(N_RELATIONS=2)
def test_networks_mark_and_test_relations() -> None:
    cells = coded_cells()
    model = PlantedAttention([], RELATED)
    tf = pd.DataFrame({"source": ["G22", "G05"], "target": ["G21", "G06"], "mor": [1.0, -1.0]})
    known = pd.DataFrame({"gene1": ["G30", "G21"], "gene2": ["G31", "G22"]})
    related = of_kind(run(cells, model, knowledge={"protein": known, "tf": tf}), "relation")
    mark = dict(zip(related["source"], related["support"], strict=True))
    assert mark == {"gene:G21": "tf|protein", "gene:G30": "protein"}
    support = cells.uns["knowledge_graph"]["params"]["support"]
    assert support["protein"]["n_supported"] == support["protein"]["n_edges"] == 2
    assert support["protein"]["p_value"] < 0.01
    assert support["protein"]["expected"] < 0.1
    assert support["tf"]["n_supported"] == 1
    drawn = np.random.default_rng(0).integers(0, 20, (60, 2))
    other = pd.DataFrame([[f"G{i:02d}" for i in row] for row in drawn], columns=["gene1", "gene2"])
    run(cells, model, knowledge={"protein": other})
    found = cells.uns["knowledge_graph"]["params"]["support"]["protein"]
    assert found["n_supported"] == 0
    assert found["p_value"] == 1.0


def test_support_is_beyond_that_of_genes_as_much_expressed() -> None:
    genes = np.arange(200)
    level = np.where(genes < 20, 1.0, 0.1 + genes / 1e4)
    # all of the 20 most expressed genes are known to work together, and nothing else is
    known = sparse.csr_matrix((genes[:, None] < 20) & (genes < 20) & ~np.eye(200, dtype=bool))
    edges = {"a": np.arange(0, 10), "b": np.arange(10, 20)}
    found = support_test(known, **edges, genes=genes, level=level, n_permutations=200, seed=0)
    assert found["n_supported"] == 10
    assert found["expected"] == 10.0
    assert found["p_value"] == 1.0
    blind = support_test(
        known, **edges, genes=genes, level=np.zeros(200), n_permutations=200, seed=0
    )
    assert blind["expected"] == 10.0  # ties go by number, so these are a stratum as well
    other = support_test(known, **edges, genes=genes, level=genes % 10, n_permutations=200, seed=0)
    assert other["expected"] < 1
    assert other["p_value"] == pytest.approx(1 / 201)


def test_enrichment_is_fishers() -> None:
    cells = coded_cells(180)
    edges = run(cells, annotations=["tissue", "batch"])
    enriched = of_kind(edges, "enrichment").set_index(["source", "target"])
    assert ("code:0", "tissue:lung") in enriched.index
    assert ("code:1", "tissue:gut") in enriched.index
    assert not enriched.index.get_level_values(1).str.startswith("batch:").any()
    row = enriched.loc[("code:0", "tissue:lung")]
    table = pd.crosstab(cells.obs["cell_code"] == "0", cells.obs["tissue"] == "lung")
    assert row["p_value"] == pytest.approx(
        fisher_exact(table.to_numpy()[::-1, ::-1], alternative="greater").pvalue, rel=1e-6, abs=0.0
    )
    a, b, c, d = (table.to_numpy()[::-1, ::-1] + 0.5).ravel()
    assert row["weight"] == row["log_odds"] == pytest.approx(np.log(a * d / b / c))
    assert row["overlap"] == a - 0.5
    nodes = cells.uns["knowledge_graph"]["nodes"]
    assert nodes.loc["batch:a", "n_edges"] == 0
    assert nodes.loc["tissue:lung", "size"] == (cells.obs["tissue"] == "lung").sum()


def test_missing_annotations_count_for_nothing() -> None:
    cells = coded_cells(180)
    cells.obs["tissue"] = cells.obs["tissue"].where(np.arange(180) < 120)
    part = cells[:120].copy()
    whole = of_kind(run(cells, annotations=["tissue"]), "enrichment")
    alone = of_kind(run(part, annotations=["tissue"]), "enrichment")
    np.testing.assert_allclose(whole["p_value"], alone["p_value"])


def test_drugs_act_on_genes_of_the_graph() -> None:
    cells = coded_cells()
    drugs = pd.DataFrame(
        {"compound": ["x", "x", "y", "z"], "gene": ["G01", "none", "L0", "G25"], "action": ""}
    )
    with limits(N_GENES=12):
        edges = of_kind(run(cells, knowledge={"drugs": drugs}), "target")
    assert set(zip(edges["source"], edges["target"], strict=True)) == {
        ("drug:x", "gene:G01"),
        ("drug:y", "gene:L0"),
    }
    assert edges["directed"].all()


def test_what_is_written_holds_together() -> None:
    cells = coded_cells()
    edges = run(cells, PlantedAttention([], RELATED), annotations=["tissue"])
    nodes = cells.uns["knowledge_graph"]["nodes"]
    assert nodes.index.is_unique
    assert set(edges["source"]) | set(edges["target"]) <= set(nodes.index)
    assert nodes.index[:3].tolist() == ["code:0", "code:1", "code:10"]  # numbers by size
    assert nodes["size"].iloc[:3].sum() == cells.n_obs
    ends = pd.concat([edges["source"], edges["target"]]).value_counts()
    assert (nodes["n_edges"] == ends.reindex(nodes.index).fillna(0)).all()
    assert ((edges["strength"] > 0) & (edges["strength"] <= 1)).all()
    for _, part in edges.groupby("kind", sort=False):
        assert part["weight"].is_monotonic_decreasing
        assert part["strength"].is_monotonic_decreasing
    assert (edges["directed"] == (edges["kind"] == "communication")).all()
    assert (edges["evidence"] != "").all()
    tested = edges["kind"] != "relation"
    assert (edges.loc[tested, "fdr"] <= 0.05).all()
    assert edges.loc[~tested, "fdr"].isna().all()
    cfm.data.KnowledgeGraph(nodes, edges)


def test_the_order_of_cells_and_genes_changes_nothing() -> None:
    cells = coded_cells()
    rng = np.random.default_rng(1)
    shuffled = cells[rng.permutation(cells.n_obs)][:, rng.permutation(cells.n_vars)].copy()
    found = []
    for data in (cells, shuffled):
        model = PlantedAttention(["R3"], RELATED)
        run(data, model, annotations=["tissue"])
        found.append(data.uns["knowledge_graph"])
    pd.testing.assert_frame_equal(found[1]["nodes"], found[0]["nodes"])
    pd.testing.assert_frame_equal(found[1]["edges"], found[0]["edges"], rtol=1e-6)


def test_ensembl_ids_are_found_and_read_as_symbols() -> None:
    cells = coded_cells()
    # CXCL10 and CXCR3
    names = cells.var_names.to_series().replace({"L0": "ENSG00000169245", "R0": "ENSG00000186810"})
    cells.var_names = names.to_list()
    pairs = pd.DataFrame({"ligand": ["CXCL10"], "receptor": ["CXCR3"]})
    links = of_kind(run(cells, knowledge={"ligand_receptor": pairs}), "communication")
    assert ("code:0", "code:1") in set(zip(links["source"], links["target"], strict=True))
    graph = cfm.get.knowledge_graph(cells)
    assert graph.nodes.loc["gene:ENSG00000169245", "label"] == "CXCL10"
    assert "gene:ENSG00000169245" in graph.query("code:0", 50).index
    assert len(graph.query("CXCL10")) > 0


def test_what_is_read_is_what_the_codes_were_made_from() -> None:
    cells = typed_cells()
    total = cells.X.sum(axis=1).A1
    cells.obs["total"] = total
    cells.layers["log"] = cells.X.multiply(1e4 / total[:, None]).log1p().tocsr()
    expected = cells.copy()
    cfm.tl.cell_codes(cells, NearestCode(), layer="log", units="log1p_cp10k", total_counts="total")
    expected.obs["cell_code"] = cells.obs["cell_code"]
    cells.X = cells.X * 0.5  # neither counts nor logarithms
    for data in (cells, expected):
        with pytest.warns(UserWarning, match="fewer than 10 cells"):
            cfm.tl.knowledge_graph(data, None, communication=None)
    made, usual = (x.uns["knowledge_graph"] for x in (cells, expected))
    assert (made["params"]["layer"], made["params"]["units"]) == ("log", "log1p_cp10k")
    assert (usual["params"]["units"], "layer" in usual["params"]) == ("counts", False)
    pd.testing.assert_frame_equal(made["edges"], usual["edges"], rtol=1e-6)


def test_liana_finds_the_planted_links(toy: ad.AnnData) -> None:
    pytest.importorskip("liana")
    cells = cfm.datasets.toy_communication(3)
    cfm.tl.knowledge_graph(cells, None, codes="cell_type", communication="liana")
    links = of_kind(cells.uns["knowledge_graph"]["edges"], "communication")
    assert (links["fdr"] <= 0.05).all()
    ends = ["source", "target", "ligand", "receptor"]
    both = links.merge(of_kind(toy.uns["knowledge_graph"]["edges"], "communication"), on=ends)
    assert len(both) == len(links)
    np.testing.assert_allclose(both["score_x"], both["score_y"])
    is_link = planted_links(links, cells)
    assert is_link.sum() == len(cells.uns["truth"]["links"])
    assert average_precision_score(is_link, links["weight"]) > 0.85
    again = cfm.datasets.toy_communication(3)[::-1].copy()
    cfm.tl.knowledge_graph(again, None, codes="cell_type", communication="liana")
    pd.testing.assert_frame_equal(
        of_kind(again.uns["knowledge_graph"]["edges"], "communication"), links
    )


def test_without_liana_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liana", None)
    cells = coded_cells()
    before = cells.copy()
    with pytest.raises(ImportError, match=r"pip install 'cfm-tools\[communication\]'"):
        run(cells, communication="liana")
    assert_unchanged(cells, before)

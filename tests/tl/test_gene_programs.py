"""``cfm.tl.gene_programs``: planted modules come back, and what is written holds together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

import cfm
from cfm.models import CellPulse
from tests._block_model import BLOCK, N_BLOCKS, BlockModel, FactorModel, block_data
from tests._same import assert_same, assert_unchanged

QUICK: dict[str, Any] = {"n_bootstraps": 3, "n_null": 3, "min_size": 5, "n_neighbors": 8}


def run(adata: ad.AnnData, model: Any, **arguments: Any) -> dict[str, Any]:
    cfm.tl.gene_programs(adata, model, **(QUICK | arguments))
    return adata.uns["gene_programs"]


def planted(seed: int = 0, n: int = 8) -> tuple[ad.AnnData, np.ndarray, BlockModel]:
    adata, block, genes = block_data(n, seed)
    return adata, block, BlockModel(genes, block)


def modules_of(stored: dict[str, Any], genes: list[str]) -> np.ndarray:
    """Program of each gene, "" for none."""
    table = stored["genes"].set_index("gene")["program"]
    return table.reindex(genes).fillna("").to_numpy()


def test_planted_blocks_of_attention_come_back_by_any_model() -> None:
    adata, block, model = planted()
    stored = run(adata, model)
    assert stored["params"]["source"] == "attention"
    assert adjusted_rand_score(block, modules_of(stored, list(model.genes))) == 1.0
    programs = stored["programs"]
    assert programs.index.tolist() == [f"P{i + 1}" for i in range(N_BLOCKS)]
    assert (programs["size"] == BLOCK).all()
    assert sorted(programs["direction"]) == ["down", "down", "up", "up"]
    assert (programs["coherence"] > 0.95).all()
    assert (programs["stability"] > 0.95).all()
    assert (programs["cohesion"] > 0.9).all()
    assert (programs["fdr"] < 0.2).all()  # of three random graphs


def test_attention_decides_and_not_only_the_directions() -> None:
    adata, block, model = planted()
    adata.X[:, : len(block)] = np.abs(adata.X[:, : len(block)])
    adata.X[:, 0] *= -1.0  # one gene falls: nothing else tells the blocks apart
    stored = run(adata, model)
    found = modules_of(stored, list(model.genes))
    assert adjusted_rand_score(block[1:], found[1:]) == 1.0
    blind = BlockModel(list(model.genes), block, contrast=1.0)
    with pytest.raises(ValueError, match="No module has at least min_size=5 genes"):
        run(adata, blind)


def test_the_source_is_chosen() -> None:
    adata, block, genes = block_data()
    adata.X[:, : len(block)] = np.abs(adata.X[:, : len(block)])
    adata.X[:, -1] = -1.0  # signed, but unknown to the model
    model = FactorModel(genes, block)
    shifted = (np.arange(len(genes)) + BLOCK // 2) // BLOCK % N_BLOCKS
    with pytest.warns(UserWarning, match="No effect is negative"):
        automatic = run(adata, model)
    assert automatic["params"]["source"] == "interaction"
    assert adjusted_rand_score(shifted, modules_of(automatic, genes)) == 1.0
    with pytest.warns(UserWarning, match="No effect is negative"):
        attention = run(adata, model, source="attention")
    assert adjusted_rand_score(block, modules_of(attention, genes)) == 1.0
    with pytest.warns(UserWarning, match="No effect is negative"):
        both = run(adata, model, source="combined", resolution=3.0)
    assert len(both["programs"]) > N_BLOCKS  # the cells of the two partitions


@pytest.fixture
def stored(model: CellPulse, contrasts: ad.AnnData) -> ad.AnnData:
    """Toy contrasts with programs, by group and with gene sets."""
    cfm.tl.gene_programs(
        contrasts,
        model,
        groupby="label",
        groups=["virus_B", "virus_A"],
        gene_sets={"head": contrasts.var_names[:40].tolist(), "tail": ["nothing"]},
        **QUICK,
    )
    return contrasts


def test_what_is_written_holds_together(stored: ad.AnnData) -> None:
    record = stored.uns["gene_programs"]
    programs, genes, edges = record["programs"], record["genes"], record["edges"]
    assert set(programs["group"]) == {"virus_A", "virus_B"}
    assert programs.index[0] == "virus_B:P1"  # the order that was asked for
    assert programs.index.is_unique
    for name, row in programs.iterrows():
        own = genes[genes["program"] == name]
        assert len(own) == row["size"] >= QUICK["min_size"]
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        assert own["weight"].iloc[0] == 1.0
        assert own["weight"].is_monotonic_decreasing
        assert (np.sign(own["effect"]).replace(0, 1) == own["sign"]).all()
        up = (own["sign"] > 0).mean()
        assert (row["direction"] == "up") == (up >= 0.8)
        weights = stored.varm["gene_programs"][name]
        expected = own.set_index("gene")["weight"] * own["sign"].to_numpy()
        np.testing.assert_allclose(weights[expected.index], expected, rtol=1e-6)
        assert (weights.drop(expected.index) == 0).all()
    for column in ("coherence", "stability", "cohesion", "p_value", "fdr"):
        assert programs[column].between(0, 1).all()
    assert programs.groupby("group", sort=False)["size"].is_monotonic_decreasing.all()
    assert not genes.duplicated(["program", "gene"]).any()
    one_group = genes[genes["program"].str.startswith("virus_A:")]
    assert one_group["gene"].is_unique  # a gene is in one program of a group at most
    place = genes.set_index(["program", "gene"]).index
    for side in ("a", "b"):
        assert place.isin(
            list(zip(edges[f"program_{side}"], edges[f"gene_{side}"], strict=True))
        ).any()
        assert set(edges[f"program_{side}"]) <= set(programs.index)
    assert (edges["weight"] > 0).all()
    inside = edges[edges["program_a"] == edges["program_b"]].groupby("program_a")["weight"].sum()
    strength = pd.concat(
        [edges.groupby("program_a")["weight"].sum(), edges.groupby("program_b")["weight"].sum()],
        axis=1,
    ).sum(axis=1)
    # edges to genes outside all programs are not stored, so the share can only be smaller
    assert (programs["cohesion"] <= (2 * inside / strength)[programs.index] + 1e-9).all()
    assert set(record["enrichment"]["term"]) <= {"head"}
    assert set(record["enrichment"]["program"]) <= set(programs.index)
    activity = stored.obsm["X_gene_programs"]
    assert activity.columns.tolist() == programs.index.tolist()
    assert (activity.dtypes == np.float32).all()
    assert np.isfinite(activity).all(axis=None)


def test_activity_is_high_in_the_group_whose_program_goes_up(stored: ad.AnnData) -> None:
    activity = stored.obsm["X_gene_programs"]
    for group in ("virus_A", "virus_B"):
        own = [c for c in activity if c.startswith(f"{group}:")]
        means = activity.groupby(stored.obs["label"].to_numpy(), observed=True)[own].mean()
        assert (means.loc[group] > 0).mean() > 0.8  # signs are those of the group's own effects


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_result_survives_a_file(stored: ad.AnnData, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "h5ad":
        stored.write_h5ad(path)
        back = ad.read_h5ad(path)
    else:
        stored.write_zarr(path)
        back = ad.read_zarr(path)
    for name in ("programs", "genes", "edges", "enrichment"):
        pd.testing.assert_frame_equal(
            back.uns["gene_programs"][name],
            stored.uns["gene_programs"][name],
            check_index_type=False,
            check_column_type=False,
            check_dtype=False,  # text is str in pandas 3, object before
        )
    for part in ("varm", "obsm"):
        key = "gene_programs" if part == "varm" else "X_gene_programs"
        np.testing.assert_array_equal(
            getattr(back, part)[key].to_numpy(), getattr(stored, part)[key].to_numpy()
        )
    assert back.uns["gene_programs"]["params"]["groupby"] == "label"


def test_the_order_of_rows_and_genes_changes_nothing(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    rng = np.random.default_rng(1)
    rows, genes = rng.permutation(contrasts.n_obs), rng.permutation(contrasts.n_vars)
    shuffled = contrasts[rows][:, genes].copy()
    for source in ("interaction", "attention", "combined"):
        first = run(contrasts, model, source=source)
        second = run(shuffled, model, source=source)
        for name in ("programs", "genes", "edges"):
            assert len(first[name]) > 0
            pd.testing.assert_frame_equal(second[name], first[name], check_exact=True)
        np.testing.assert_allclose(
            shuffled.obsm["X_gene_programs"],
            contrasts.obsm["X_gene_programs"].iloc[rows],
            rtol=1e-3,
            atol=1e-3,
        )


def test_a_seed_repeats_and_a_group_does_not_depend_on_the_others(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    both = run(contrasts, model, groupby="label")
    again = run(contrasts, model, groupby="label")
    assert_same(again, both)
    alone = run(contrasts, model, groupby="label", groups=["virus_C"])
    part = both["programs"][both["programs"]["group"] == "virus_C"]
    pd.testing.assert_frame_equal(alone["programs"], part)


def test_sparse_layers_and_copies(model: CellPulse, contrasts: ad.AnnData) -> None:
    dense = run(contrasts.copy(), model)
    other = contrasts.copy()
    other.layers["lfc"] = sp.csr_matrix(other.X)
    other.X = np.abs(other.X)
    before = other.copy()
    made = cfm.tl.gene_programs(other, model, layer="lfc", key_added="mine", copy=True, **QUICK)
    assert_unchanged(other, before)
    pd.testing.assert_frame_equal(made.uns["mine"]["programs"], dense["programs"])
    assert "X_mine" in made.obsm
    assert "mine" in made.varm
    assert made.uns["mine"]["params"]["layer"] == "lfc"


def test_higher_resolution_gives_more_programs(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = run(contrasts, model, resolution=0.3)["programs"]
    many = run(contrasts, model, resolution=4.0)["programs"]
    assert len(many) > len(few)
    assert many["size"].max() < few["size"].max()


def test_the_bundled_model_finds_the_interferon_response() -> None:
    counts = cfm.datasets.blanco_melo()
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by="series")
    interferon = ["IFIT1", "IFIT2", "IFIT3", "MX1", "MX2", "OAS1", "OAS2", "ISG15", "RSAD2"]
    cfm.tl.gene_programs(
        contrasts, gene_sets={"interferon": interferon}, n_genes=600, n_bootstraps=2, n_null=2
    )
    table = contrasts.uns["gene_programs"]["enrichment"]
    best = table.sort_values("p_value").iloc[0]
    assert best["overlap"] >= 5
    assert best["fdr"] < 1e-3
    programs = contrasts.uns["gene_programs"]["programs"]
    assert programs.loc[best["program"], "direction"] == "up"
    params = contrasts.uns["gene_programs"]["params"]
    assert params["model"] == "cellpulse-mini"
    assert len(params["sha256"]) == 64
